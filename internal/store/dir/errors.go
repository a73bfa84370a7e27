package dir

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/store"
)

// classify turns an error of the file system into a *store.Error. Errors it has
// no class for (an I/O error of the disk, too many open files) are final: trying
// again on a local disk does not help, and an error of fsync must never be
// retried on the same file, because the kernel may have dropped the bytes.
func classify(op, key string, err error) error {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return nil
	case is(fs.ErrNotExist, unix.ENOTDIR):
		return store.Fail(op, key, store.ErrNotFound, err, "")
	case is(fs.ErrExist):
		return store.Fail(op, key, store.ErrExists, err, "")
	case is(unix.ENOSPC, unix.EDQUOT, unix.EFBIG):
		return store.Fail(op, key, store.ErrFull, err, "free space or raise the quota where the repository lies")
	case is(unix.EROFS):
		return store.Fail(op, key, store.ErrDenied, err, "the file system is mounted read-only")
	case is(fs.ErrPermission):
		return store.Fail(op, key, store.ErrDenied, err, "run as the user that owns the repository, or give this one access")
	case is(errNoExclusiveLink):
		return store.Fail(op, key, store.ErrDenied, err, "put the repository on a file system with hard links")
	case is(unix.ESTALE, unix.ETIMEDOUT, unix.EAGAIN, unix.EINTR, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENOLCK):
		return store.Fail(op, key, store.ErrTransient, err, "") // network file systems
	}
	return store.Fail(op, key, nil, err, "")
}
