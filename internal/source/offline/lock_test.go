package offline

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/source"
)

func openLocks(t testing.TB, path string) *lockSet {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return newLockSet(f)
}

// conflictAt gives the byte that was in the way, 0 for none.
func conflictAt(t testing.TB, err error) int64 {
	t.Helper()
	var conflict *conflictError
	if errors.As(err, &conflict) {
		return conflict.offset
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

func TestOurLocksMeetThoseOfQEMU(t *testing.T) {
	path := newImage(t, "8M")
	for _, c := range []struct {
		name              string
		flags             []string
		read, deny, write int64 // the byte that must be in the way
	}{
		{"read-write", nil, usesWrite, usesWrite, deniesWrite},
		{"read-only", []string{"-r"}, 0, 0, deniesWrite},
		{"read-only with force-share", []string{"-r", "-U"}, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			other := hold(t, path, c.flags...)
			for _, step := range []struct {
				name string
				lock func(*lockSet) error
				want int64
			}{
				{"read", (*lockSet).read, c.read},
				{"deny writers", (*lockSet).denyWriters, c.deny},
				{"claim write", (*lockSet).claimWrite, c.write},
			} {
				l := openLocks(t, path)
				if got := conflictAt(t, step.lock(l)); got != step.want {
					t.Errorf("%s: byte %d in the way, want %d", step.name, got, step.want)
				}
				if err := l.release(); err != nil {
					t.Error(err)
				}
			}
			other.release(t)
			l := openLocks(t, path)
			for _, lock := range []func() error{l.read, l.denyWriters, l.claimWrite} {
				if err := lock(); err != nil {
					t.Errorf("after the end of the other: %v", err)
				}
			}
		})
	}
}

func TestQEMUMeetsOurLocks(t *testing.T) {
	path := newImage(t, "8M")
	l := openLocks(t, path)
	for _, c := range []struct {
		name            string
		lock            func() error
		writes, reads   bool
		readsForceShare bool
	}{
		{"nothing", func() error { return nil }, true, true, true},
		{"read", l.read, true, true, true},
		{"deny writers", l.denyWriters, false, true, true},
		{"claim write", l.claimWrite, false, false, true},
		{"released", l.release, true, true, true},
	} {
		if err := c.lock(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := canOpen(t, path); got != c.writes {
			t.Errorf("%s: QEMU opens read-write: %v", c.name, got)
		}
		if got := canOpen(t, path, "-r"); got != c.reads {
			t.Errorf("%s: QEMU opens read-only: %v", c.name, got)
		}
		if got := canOpen(t, path, "-r", "-U"); got != c.readsForceShare {
			t.Errorf("%s: QEMU opens with force-share: %v", c.name, got)
		}
	}
}

func TestLocksAreThoseOfTheTable(t *testing.T) {
	path := newImage(t, "8M")
	l := openLocks(t, path)
	for _, c := range []struct {
		lock func() error
		want []int64
	}{
		{l.read, []int64{100}},
		{l.denyWriters, []int64{100, 201, 203}},
		{l.claimWrite, []int64{100, 101, 103, 201, 203}},
		{l.release, nil},
	} {
		if err := c.lock(); err != nil {
			t.Fatal(err)
		}
		if got := lockedBytes(t, l.f); !slices.Equal(got, c.want) {
			t.Errorf("locked bytes %v, want %v", got, c.want)
		}
	}
}

// lockedBytes looks with another description which bytes are locked.
func lockedBytes(t testing.TB, f *os.File) []int64 {
	t.Helper()
	other := openLocks(t, f.Name())
	var locked []int64
	for b := int64(0); b < 300; b++ {
		if conflictAt(t, other.test(b)) != 0 {
			locked = append(locked, b)
		}
	}
	return locked
}

func TestAFailedStepLeavesTheLocksOfTheStepBefore(t *testing.T) {
	path := newImage(t, "8M")
	reader, l := openLocks(t, path), openLocks(t, path)
	if err := reader.denyWriters(); err != nil {
		t.Fatal(err)
	}
	if err := l.denyWriters(); err != nil {
		t.Fatal(err)
	}
	if got := conflictAt(t, l.claimWrite()); got != deniesWrite {
		t.Errorf("byte %d in the way", got)
	}
	slices.Sort(l.held)
	if want := []int64{usesRead, deniesWrite, deniesSize}; !slices.Equal(l.held, want) {
		t.Errorf("held %v, want %v", l.held, want)
	}
	writer, late := openLocks(t, newImage(t, "8M")), (*lockSet)(nil)
	if err := errors.Join(writer.denyWriters(), writer.claimWrite()); err != nil {
		t.Fatal(err)
	}
	late = openLocks(t, writer.f.Name())
	if got := conflictAt(t, late.denyWriters()); got != usesWrite || len(late.held) != 0 {
		t.Errorf("byte %d in the way, held %v", got, late.held)
	}
}

func TestLocksEndWithAFileOfWhichAChildStillHasACopy(t *testing.T) {
	path := newImage(t, "8M")
	top, err := openTop(openOSFile, path, true)
	if err != nil {
		t.Fatal(err)
	}
	// What a child has between fork and exec.
	held, err := unix.Dup(int(top.os.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	if err := errors.Join(top.locks.denyWriters(), top.locks.claimWrite()); err != nil {
		t.Fatal(err)
	}
	other := openLocks(t, path)
	if at := conflictAt(t, other.read()); at != usesWrite {
		t.Fatalf("byte %d is in the way, want %d", at, usesWrite)
	}
	for range 2 { // an Abort after a Commit closes again
		if err := top.close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.claimWrite(); err != nil {
		t.Fatalf("after the end of the file: %v", err)
	}
}

func TestAFileSystemWithoutLocksIsAClearError(t *testing.T) {
	f := &file{path: "/vm/a"}
	for _, errno := range []unix.Errno{unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOLCK} {
		err := f.lockError(lockFailure("/vm/a", usesRead, errno))
		if !errors.Is(err, source.ErrUnusable) || !errors.Is(err, errNoLocks) || !errors.Is(err, errno) || !strings.Contains(err.Error(), "move the image") {
			t.Errorf("%v: got %v", errno, err)
		}
	}
	// A descriptor that gives no access cannot be locked, for another reason.
	path := newImage(t, "8M")
	bare, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if err := newLockSet(bare).read(); !errors.Is(err, unix.EBADF) || errors.Is(err, errNoLocks) {
		t.Errorf("got %v", err)
	}
}

func TestHoldersAreFoundWithTheirCommand(t *testing.T) {
	path := newImage(t, "8M")
	other := hold(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := identityOf(info)
	var held *source.HeldError
	if err := heldError(path, id, f); !errors.As(err, &held) {
		t.Fatal(err)
	}
	if !slices.Equal(held.Pids, []int{other.pid}) || !slices.Equal(held.Commands, []string{"qemu-io"}) {
		t.Errorf("holders %v %v, want process %d", held.Pids, held.Commands, other.pid)
	}
	if err := heldError(path, identity{1, 2}, f); !strings.Contains(err.Error(), "fuser -v") {
		t.Errorf("without a visible holder: %v", err)
	}
}

func TestAMachineIsCalledByItsName(t *testing.T) {
	folder := t.TempDir()
	for _, c := range []struct{ cmdline, comm, want string }{
		{"/usr/bin/qemu-system-x86_64\x00-S\x00-name\x00guest=web,debug-threads=on\x00-m\x001G\x00", "CPU 0", "qemu-system-x86_64 -name guest=web,debug-threads=on"},
		{"/usr/bin/qemu-nbd\x00/vm/a\x00", "qemu-nbd", "qemu-nbd"},
		{"", "kworker", "kworker"},
	} {
		if err := os.WriteFile(filepath.Join(folder, "cmdline"), []byte(c.cmdline), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "comm"), []byte(c.comm+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := commandOf(folder); got != c.want {
			t.Errorf("%q: %q, want %q", c.cmdline, got, c.want)
		}
	}
}
