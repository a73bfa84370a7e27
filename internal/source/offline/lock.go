package offline

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// errNoLocks is reported where the file system does not know OFD locks. QEMU
// then locks nothing either, so nobody can tell whether the image is in use.
var errNoLocks = errors.New("the file system has no open file description locks, so nobody can tell whether the image is in use")

// conflictError says that another open file description has locked a byte that
// must be free.
type conflictError struct{ offset int64 }

func (e *conflictError) Error() string {
	switch e.offset {
	case usesWrite, usesResize:
		return "another program has the image open for writing"
	case deniesRead:
		return "another program forbids that the image is read"
	case deniesWrite, deniesSize:
		return "another program reads the image and forbids writing"
	}
	return fmt.Sprintf("another program has locked byte %d", e.offset)
}

// lockSet is QEMU's locks on one open file description. They belong to the
// description that also does the reading and writing, so that they end with it
// and not before; and tests made through it do not see them, so that only others
// are ever in the way. Not safe for parallel use, except tests.
type lockSet struct {
	f    *os.File
	held []int64
}

func newLockSet(f *os.File) *lockSet { return &lockSet{f: f} }

// take locks the bytes that are not locked yet. QEMU takes read locks only, so
// that holders of the same byte get along and only tests collide; this cannot
// fail because of others, unless somebody uses write locks on these bytes.
func (l *lockSet) take(offsets ...int64) error {
	for _, offset := range offsets {
		if slices.Contains(l.held, offset) {
			continue
		}
		if err := l.fcntl(unix.F_OFD_SETLK, unix.F_RDLCK, offset); err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return &conflictError{offset}
			}
			return err
		}
		l.held = append(l.held, offset)
	}
	return nil
}

// drop unlocks those of the bytes that are locked.
func (l *lockSet) drop(offsets ...int64) error {
	for _, offset := range offsets {
		i := slices.Index(l.held, offset)
		if i < 0 {
			continue
		}
		if err := l.fcntl(unix.F_OFD_SETLK, unix.F_UNLCK, offset); err != nil {
			return err
		}
		l.held = slices.Delete(l.held, i, i+1)
	}
	return nil
}

// test looks whether others have locked one of the bytes, and returns a
// *conflictError for the first that is.
func (l *lockSet) test(offsets ...int64) error {
	for _, offset := range offsets {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: offset, Len: 1}
		if err := l.call(unix.F_OFD_GETLK, &lock); err != nil {
			return err
		}
		if lock.Type != unix.F_UNLCK {
			return &conflictError{offset}
		}
	}
	return nil
}

func (l *lockSet) fcntl(command int, kind int16, offset int64) error {
	return l.call(command, &unix.Flock_t{Type: kind, Whence: 0, Start: offset, Len: 1})
}

// call runs fcntl without taking the descriptor out of the runtime's hands, as
// Fd would.
func (l *lockSet) call(command int, lock *unix.Flock_t) error {
	raw, err := l.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			failed = unix.FcntlFlock(fd, command, lock)
			if !errors.Is(failed, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return lockFailure(l.f.Name(), lock.Start, failed)
}

// lockFailure says what it means that fcntl failed. A conflict stays as it is,
// for the caller to explain.
func lockFailure(name string, offset int64, failed error) error {
	switch {
	case failed == nil, errors.Is(failed, unix.EAGAIN), errors.Is(failed, unix.EACCES):
		return failed
	case errors.Is(failed, unix.EINVAL), errors.Is(failed, unix.ENOSYS), errors.Is(failed, unix.EOPNOTSUPP), errors.Is(failed, unix.ENOLCK):
		return fmt.Errorf("lock byte %d of %s: %w: %w", offset, name, errNoLocks, failed)
	}
	return fmt.Errorf("lock byte %d of %s: %w", offset, name, failed)
}

// read takes the locks of a reader that lets writers in: whoever needs the image
// to stay unread is kept out, a machine that starts is not.
func (l *lockSet) read() error {
	if err := l.take(usesRead); err != nil {
		return err
	}
	return l.test(deniesRead, usesWrite, usesResize)
}

// denyWriters takes the locks of QEMU's own readers on top of read: programs
// that want to write fail from here on. When one is there already, the locks are
// given back, so that it is not in anybody's way.
//
// The first test is not needed for safety. It keeps a machine that is starting
// from meeting our locks, when it is there already and we have to give up anyway.
func (l *lockSet) denyWriters() error {
	if err := l.test(deniesRead, usesWrite, usesResize); err != nil {
		return err
	}
	if err := l.take(usesRead, deniesWrite, deniesSize); err != nil {
		return errors.Join(err, l.drop(deniesWrite, deniesSize))
	}
	if err := l.test(deniesRead, usesWrite, usesResize); err != nil {
		return errors.Join(err, l.drop(deniesWrite, deniesSize))
	}
	return nil
}

// claimWrite takes the locks of a writer on top of denyWriters. On a conflict
// with readers those of denyWriters stay.
func (l *lockSet) claimWrite() error {
	if err := l.test(deniesRead, deniesWrite, deniesSize); err != nil {
		return err
	}
	if err := l.take(usesWrite, usesResize); err != nil {
		return errors.Join(err, l.drop(usesWrite, usesResize))
	}
	if err := l.test(deniesRead, deniesWrite, deniesSize, usesWrite, usesResize); err != nil {
		return errors.Join(err, l.drop(usesWrite, usesResize))
	}
	return nil
}

// release unlocks everything.
func (l *lockSet) release() error { return l.drop(slices.Clone(l.held)...) }
