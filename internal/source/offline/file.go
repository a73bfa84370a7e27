package offline

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
)

// openFlags go with every open: never through a symbolic link in the last
// component, which was resolved before; never waiting for the other end of a
// pipe; never becoming a terminal.
const openFlags = unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY

// openOSFile is Options.OpenFile by default.
func openOSFile(path string, flags int) (*os.File, qcow2.File, error) {
	f, err := os.OpenFile(path, flags|openFlags, 0)
	if err != nil {
		return nil, nil, err
	}
	return f, qcow2.NewOSFile(f), nil
}

// file is one open file of a disk, with QEMU's locks on its description.
type file struct {
	role string
	// name is the path as it was given or put together, from which relative
	// names in the file lead on; path is where that really is.
	name, path string
	os         *os.File
	io         qcow2.File
	id         identity
	locks      *lockSet
	block      bool // a block device
	shared     bool // what other hosts write may be missing from the page cache
	readOnly   bool // could not be opened for writing
}

// newFile takes over an open descriptor, and closes it when it is no file for us.
func newFile(role, name, path string, f *os.File, content qcow2.File) (*file, error) {
	out := &file{role: role, name: name, path: path, os: f, io: content, locks: newLockSet(f)}
	if err := out.examine(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return out, nil
}

func (f *file) examine() error {
	info, err := f.os.Stat()
	if err != nil {
		return err
	}
	if err := checkKind(f.path, info); err != nil {
		return err
	}
	f.block = !info.Mode().IsRegular()
	id, ok := identityOf(info)
	if !ok {
		return fmt.Errorf("%s: the system does not say which file this is", f.path)
	}
	f.id = id
	network, err := onSharedFileSystem(f.os)
	f.shared = f.block || network
	return err
}

// checkKind refuses what is neither a regular file nor a block device.
func checkKind(path string, info fs.FileInfo) error {
	mode := info.Mode()
	if mode.IsRegular() || mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0 {
		return nil
	}
	return &source.UsableError{Path: path, Err: fmt.Errorf("it is a %s", kindOf(mode)),
		Hint: "name a regular file or a block device"}
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "folder"
	case mode&fs.ModeNamedPipe != 0:
		return "pipe"
	case mode&fs.ModeSocket != 0:
		return "socket"
	case mode&fs.ModeCharDevice != 0:
		return "character device"
	}
	return "special file"
}

// openTop opens the image that the operator named. Symbolic links are followed
// here and nowhere else. An image that may not be written to is opened for
// reading, and marked.
func openTop(open func(string, int) (*os.File, qcow2.File, error), name string, writable bool) (*file, error) {
	name, path, err := resolve(name)
	if err != nil {
		return nil, openError(name, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, openError(name, err)
	}
	if err := checkKind(name, info); err != nil {
		return nil, err
	}
	flags := unix.O_RDONLY
	if writable {
		flags = unix.O_RDWR
	}
	f, content, err := open(path, flags)
	readOnly := writable && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM))
	if readOnly {
		f, content, err = open(path, unix.O_RDONLY)
	}
	if err != nil {
		return nil, openError(name, err)
	}
	out, err := newFile(facts.RoleTop, name, path, f, content)
	if err != nil {
		return nil, err
	}
	out.readOnly = readOnly
	return out, nil
}

// resolve makes a path absolute, and follows its symbolic links. The absolute
// name is not cleaned: "link/.." is not where it looks.
func resolve(name string) (absolute, path string, err error) {
	absolute = name
	if !filepath.IsAbs(name) {
		folder, err := os.Getwd()
		if err != nil {
			return name, "", err
		}
		absolute = folder + "/" + name
	}
	path, err = filepath.EvalSymlinks(absolute)
	return absolute, path, err
}

func openError(name string, err error) error {
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "check the path"
	case errors.Is(err, fs.ErrPermission):
		hint = "run as root or as the owner of the image"
	}
	return &source.UsableError{Path: name, Err: err, Hint: hint}
}

// stamp is what the file system says about the file now.
func (f *file) stamp() (facts.Stamp, error) {
	size, err := f.io.Size()
	if err != nil {
		return facts.Stamp{}, err
	}
	return facts.StampOf(f.os, size)
}

// settle waits until a change of the file could no longer get the time that the
// file has now.
func (f *file) settle() error {
	s, err := f.stamp()
	if err != nil || f.block {
		return err
	}
	age := time.Since(time.Unix(0, max(s.ModifiedNanos, s.ChangedNanos)))
	if age < settleTime {
		time.Sleep(settleTime)
	}
	return nil
}

// dropPages makes what is read from here on come from the device or server. What
// this host has written itself must get there first.
func (f *file) dropPages() error {
	if !f.shared {
		return nil
	}
	raw, err := f.os.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.Fdatasync(int(fd))
		if failed == nil {
			failed = unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("drop cached pages of %s: %w", f.path, err)
	}
	return nil
}

// close gives up the locks and ends the descriptor. The locks belong to the open
// file, of which a program that is just being started by this process has a copy for
// a moment; left to the descriptor's end they could outlive it.
func (f *file) close() error {
	unlocked := f.locks.release()
	err := f.os.Close()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return errors.Join(unlocked, err)
}

// Magic numbers that package unix does not have, from the file systems' sources.
const (
	gfs2Magic   = 0x01161970
	lustreMagic = 0x0bd00bd0
	gpfsMagic   = 0x47504653
	vboxsfMagic = 0x786f4256
)

// sharedFileSystem tells whether several hosts may write to the files of a file
// system, by the magic number that statfs gives.
func sharedFileSystem(magic int64) bool {
	switch magic {
	case unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC, unix.AFS_SUPER_MAGIC,
		unix.CODA_SUPER_MAGIC, unix.V9FS_MAGIC, gfs2Magic, lustreMagic, gpfsMagic, vboxsfMagic:
		return true
	}
	return false
}

func onSharedFileSystem(f *os.File) (bool, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var stat unix.Statfs_t
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.Fstatfs(int(fd), &stat) })
	if err = errors.Join(err, failed); err != nil {
		return false, fmt.Errorf("look at the file system of %s: %w", f.Name(), err)
	}
	// Some architectures have a signed 32-bit field.
	return sharedFileSystem(int64(stat.Type) & 0xffffffff), nil
}
