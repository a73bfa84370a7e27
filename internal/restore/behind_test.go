package restore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestWritesLeaveThePageCacheAndAllArrive(t *testing.T) {
	const part, parts, limit = 1 << 20, 19, 6 << 20
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &writeBehind{f: f, maxBytes: limit}
	order := rand.New(rand.NewPCG(1, 2)).Perm(parts)
	var group sync.WaitGroup
	next := make(chan int)
	for range 4 {
		group.Go(func() {
			for i := range next {
				if n, err := w.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, part), int64(i)*part); n != part || err != nil {
					t.Errorf("part %d: %d, %v", i, n, err)
				}
			}
		})
	}
	for _, i := range order {
		next <- i
	}
	close(next)
	group.Wait()
	if n, err := w.WriteAt([]byte("small"), 7); n != 5 || err != nil {
		t.Fatalf("a small write: %d, %v", n, err)
	}
	resident, known := residentBytes(t, f, parts*part)
	if known && resident > limit+4*part {
		t.Errorf("%d of %d bytes are in the page cache", resident, parts*part)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(got[7:], bytes.Repeat([]byte{1}, 5))
	for i := range parts {
		if !bytes.Equal(got[i*part:(i+1)*part], bytes.Repeat([]byte{byte(i + 1)}, part)) {
			t.Errorf("part %d differs", i)
		}
	}
}

// residentBytes counts what of a file is in the page cache, on file systems that keep files elsewhere.
func residentBytes(t *testing.T, f *os.File, n int) (resident int, known bool) {
	t.Helper()
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	if int64(stat.Type) != unix.EXT4_SUPER_MAGIC && int64(stat.Type) != unix.XFS_SUPER_MAGIC {
		return 0, false
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	page := os.Getpagesize()
	vector := make([]byte, n/page)
	if err := mincore(mapped, vector); err != nil {
		t.Fatal(err)
	}
	for _, v := range vector {
		resident += int(v&1) * page
	}
	return resident, true
}

func mincore(mapped, vector []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&vector[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

func TestAFileThatCannotBeFollowedIsStillWritten(t *testing.T) {
	f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := newWriteBehind(f)
	for range 3 {
		if n, err := w.WriteAt(make([]byte, behindMinBytes), 0); n != behindMinBytes || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if !w.refused || len(w.sent) > 1 {
		t.Errorf("refused %v, %d stretches are followed", w.refused, len(w.sent))
	}
}

func TestAFailureOfAnEarlierWriteIsNotLost(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWriteBehind(f)
	f.Close()
	if err := w.follow(stretch{0, behindMinBytes}); !errors.Is(err, syscall.EBADF) {
		t.Errorf("%v, want EBADF", err)
	}
}
