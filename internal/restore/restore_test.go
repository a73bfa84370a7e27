package restore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/extent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errDamaged = errors.New("block is damaged")

// fakeDisk is a point's disk in memory, with places that cannot be read.
type fakeDisk struct {
	data    []byte
	extents []extent.Extent
	damaged []extent.Extent
}

func (d *fakeDisk) Size() int64 { return int64(len(d.data)) }

func (d *fakeDisk) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	for _, bad := range d.damaged {
		if off < bad.End() && off+int64(len(p)) > bad.Off {
			return 0, errDamaged
		}
	}
	n := copy(p, d.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *fakeDisk) Extents(context.Context, int64, int64) extent.Seq { return extent.Of(d.extents...) }

// newFakeDisk has data and zeros in turn, cut at multiples of 64 KiB, and an odd end.
func newFakeDisk(seed uint64, blocks int) *fakeDisk {
	random := rand.New(rand.NewPCG(seed, 1))
	d := &fakeDisk{data: make([]byte, blocks*65536-512)}
	for off := 0; off < len(d.data); {
		n := min((random.IntN(100)+1)*65536, len(d.data)-off)
		zero := random.IntN(2) == 0
		if !zero {
			for i := off; i < off+n; i++ {
				d.data[i] = byte(random.Uint32())
			}
		}
		d.extents = append(d.extents, extent.Extent{Off: int64(off), Len: int64(n), Zero: zero})
		off += n
	}
	return d
}

// memoryTarget fails the test when a byte is written or zeroed twice.
type memoryTarget struct {
	t     *testing.T
	align int64
	mu    sync.Mutex
	data  []byte
	seen  []bool
}

func (m *memoryTarget) Align() int64 { return m.align }

func (m *memoryTarget) mark(off, n int64) {
	if off%m.align != 0 {
		m.t.Errorf("range at %d is not aligned to %d", off, m.align)
	}
	for i := off; i < off+n; i++ {
		if m.seen[i] {
			m.t.Fatalf("byte %d is written twice", i)
		}
		m.seen[i] = true
	}
}

func (m *memoryTarget) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark(off, int64(len(p)))
	return copy(m.data[off:], p), nil
}

func (m *memoryTarget) Zero(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark(off, n)
	clear(m.data[off : off+n])
	return nil
}

func TestEveryByteIsRestoredOnceWhateverTheAlignment(t *testing.T) {
	for seed, align := range []int64{512, 4096, 65536, 1 << 20} {
		d := newFakeDisk(uint64(seed), 300)
		target := &memoryTarget{t: t, align: align, data: bytes.Repeat([]byte{0xee}, len(d.data)), seen: make([]bool, len(d.data))}
		var stats Stats
		if err := Run(context.Background(), d, target, Options{Stats: &stats}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(target.data, d.data) {
			t.Fatalf("align %d: the target differs from the disk", align)
		}
		if got := stats.Written.Load() + stats.Zero.Load(); got != d.Size() {
			t.Fatalf("align %d: %d bytes counted, want %d", align, got, d.Size())
		}
	}
}

func TestStreamWritesTheDiskInOrder(t *testing.T) {
	d := newFakeDisk(9, 500)
	var out bytes.Buffer
	if err := Stream(context.Background(), d, &out, Options{Workers: 3}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), d.data) {
		t.Fatal("the stream differs from the disk")
	}
}

func TestStreamStopsAtDamageAndAtAFullPipe(t *testing.T) {
	d := newFakeDisk(9, 500)
	d.damaged = []extent.Extent{{Off: 20 << 20, Len: 1}}
	if err := Stream(context.Background(), d, io.Discard, Options{}); !errors.Is(err, errDamaged) {
		t.Fatalf("got %v", err)
	}
	d.damaged = nil
	if err := Stream(context.Background(), d, failingWriter{}, Options{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("got %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestDamageIsNamedAndTheRestIsRestored(t *testing.T) {
	d := newFakeDisk(3, 300)
	for i := range d.data {
		d.data[i] |= 1
	}
	d.extents = []extent.Extent{{Len: d.Size()}}
	d.damaged = []extent.Extent{{Off: 5<<20 + 100, Len: 10}, {Off: 5<<20 + 65536, Len: 1}, {Off: 11 << 20, Len: 1}}

	target := &memoryTarget{t: t, align: 512, data: make([]byte, len(d.data)), seen: make([]bool, len(d.data))}
	err := Run(context.Background(), d, target, Options{Salvage: func(err error) bool { return errors.Is(err, errDamaged) }})
	var lost *LostError
	if !errors.As(err, &lost) || !errors.Is(err, errDamaged) {
		t.Fatalf("got %v, want a LostError", err)
	}
	want := []extent.Extent{{Off: 5 << 20, Len: 131072}, {Off: 11 << 20, Len: 65536}}
	if len(lost.Ranges) != 2 || lost.Ranges[0] != want[0] || lost.Ranges[1] != want[1] {
		t.Fatalf("lost %v, want %v", lost.Ranges, want)
	}
	for _, r := range want {
		clear(d.data[r.Off:r.End()])
	}
	if !bytes.Equal(target.data, d.data) {
		t.Fatal("what was not damaged is not restored")
	}
	if err := Run(context.Background(), d, &memoryTarget{t: t, align: 512, data: target.data, seen: make([]bool, len(d.data))}, Options{}); !errors.Is(err, errDamaged) || errors.As(err, &lost) {
		t.Fatalf("without salvage: got %v, want the first error", err)
	}
}

func TestAFileAppearsOnlyWhenItIsWhole(t *testing.T) {
	d := newFakeDisk(4, 100)
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := CreateFile(path, d.Size(), false)
	if err != nil {
		t.Fatal(err)
	}
	target, err := NewRawTarget(f, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(context.Background(), d, target, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("the target is visible before it is published: %v", err)
	}
	if _, err := CreateFile(path, d.Size(), false); !errors.Is(err, ErrInUse) {
		t.Fatalf("a second restore to the same place: got %v, want ErrInUse", err)
	}
	if err := f.Publish(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, d.data) {
		t.Fatalf("the file differs from the disk (%v)", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 >= d.Size() {
		t.Fatalf("the file is not sparse: %d of %d bytes allocated, %v", st.Blocks*512, d.Size(), err)
	}
	if _, err := CreateFile(path, d.Size(), false); !errors.Is(err, ErrExists) {
		t.Fatalf("an existing file: got %v, want ErrExists", err)
	}
}

func TestAnExistingFileStaysUntilItsReplacementIsWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := CreateFile(path, 1<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Discard(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Fatalf("the old file became %q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.partial")); len(left) > 0 {
		t.Fatalf("left over: %v", left)
	}
	if f, err = CreateFile(path, 1<<20, true); err != nil {
		t.Fatal(err)
	}
	if _, err := NewRawTarget(f, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Fatal("the file was not replaced")
	}
}

func TestWhatAnInterruptedRestoreLeftIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path+".partial", bytes.Repeat([]byte("stale"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := CreateFile(path, 4096, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewRawTarget(f, 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatal("stale bytes shine through")
	}
}

func TestATargetThatAVMHasOpenIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateFile(path, 4096, true); !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v, want ErrInUse", err)
	}
}

func TestOddTargetsAreRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := CreateFile(dir, 4096, true); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Fatalf("a directory: got %v", err)
	}
	if _, err := CreateFile("/dev/null", 4096, true); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Fatalf("a character device: got %v", err)
	}
	if _, err := CreateFile(filepath.Join(dir, "no", "such", "folder"), 4096, false); err == nil {
		t.Fatal("a folder that is not there is no error")
	}
}
