package dir

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// FS is every effect that a Store has on the file system; reading is not one.
// Paths are those of the store's folder with the key below it. A crash harness
// implements it by recording each call and passing it on to OS. Errors keep
// their errno for errors.Is. All methods are safe for parallel use.
type FS interface {
	// Mkdir makes one folder; an error that is fs.ErrExist when it is there.
	Mkdir(path string, mode fs.FileMode) error
	// Create makes a new file for writing; fs.ErrExist when the name is taken.
	Create(path string, mode fs.FileMode) (File, error)
	// Link gives the file temp the name final, atomically, and fails with
	// fs.ErrExist when final exists. The name temp may be gone afterwards.
	Link(temp, final string) error
	// Remove takes a file's name away; fs.ErrNotExist when there is none. It
	// never removes a folder.
	Remove(path string) error
	// SyncDir makes the names in a folder durable.
	SyncDir(path string) error
}

// File is a file being written.
type File interface {
	io.Writer
	Sync() error // makes the bytes durable
	Close() error
}

// OS is the FS of the operating system.
type OS struct{}

// Mkdir implements FS.
func (OS) Mkdir(path string, mode fs.FileMode) error { return os.Mkdir(path, mode) }

// Create implements FS.
func (OS) Create(path string, mode fs.FileMode) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f}, nil
}

// osFile is a File of the operating system.
type osFile struct {
	f       *os.File
	written int
}

func (o *osFile) Write(p []byte) (int, error) {
	n, err := o.f.Write(p)
	o.written += n
	return n, err
}

// Sync also gives the memory of a large file back to the page cache: a backup
// would push out of it what the machines of this host read. Small files stay,
// since they are read again soon. A refusal costs memory only.
func (o *osFile) Sync() error {
	if err := o.f.Sync(); err != nil {
		return err
	}
	if o.written >= dropBytes {
		_ = unix.Fadvise(int(o.f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return nil
}

func (o *osFile) Close() error { return o.f.Close() }

// Link implements FS. Where the file system has no hard links (FAT, some FUSE
// and network file systems) it renames, with the flag that forbids replacing;
// where that is missing too there is no safe way, and the error says so.
func (OS) Link(temp, final string) error {
	err := os.Link(temp, final)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	return RenameExclusive(temp, final)
}

// RenameExclusive renames temp to final and fails with fs.ErrExist when final
// exists.
func RenameExclusive(temp, final string) error {
	err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = errNoExclusiveLink
	}
	return wrapPath("rename", final, err)
}

// errNoExclusiveLink: two writers of one name could not be told apart.
var errNoExclusiveLink = errors.New("this file system can neither link nor rename without replacing")

// Remove implements FS.
func (OS) Remove(path string) error { return wrapPath("remove", path, unix.Unlink(path)) }

// SyncDir implements FS.
func (OS) SyncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func wrapPath(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
