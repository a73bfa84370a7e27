package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrExists means that the target is there already and may not be replaced.
	ErrExists = errors.New("target exists; --force overwrites it")
	// ErrNoSpace means that the target's file system is full.
	ErrNoSpace = errors.New("no space left for the target")
	// ErrTooSmall means that a block device holds fewer bytes than the disk.
	ErrTooSmall = errors.New("target is smaller than the disk")
	// ErrInUse means that the target is mounted, or that another process, such as a VM, has it open.
	ErrInUse = errors.New("target is in use: mounted, or open in a VM or another program")
)

// File is a target that is a regular file under construction, or a block device.
type File struct {
	*os.File
	path    string // where it is to appear
	partial string // where it is built; empty for a block device
	force   bool
	device  bool
	behind  *writeBehind
}

// CreateFile prepares path to take a disk of sizeBytes. A block device is written in place, which needs force; anything
// else is built as path.partial beside it and appears under path with Publish. An existing file is left as
// it is until then, and is replaced only with force.
//
// A symbolic link to a target is followed: what it leads to is replaced, and it stays.
func CreateFile(path string, sizeBytes int64, force bool) (*File, error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createPartial(path, force)
	case err != nil:
		return nil, fmt.Errorf("look at the target: %w", err)
	case info.IsDir():
		return nil, fmt.Errorf("target %s is a directory: %w", path, fs.ErrInvalid)
	case !force:
		return nil, fmt.Errorf("%s: %w", path, ErrExists)
	}
	if err := checkUnused(path); err != nil {
		return nil, err
	}
	if info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0 {
		return openDevice(path, sizeBytes)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("target %s is neither a file nor a block device: %w", path, fs.ErrInvalid)
	}
	return createPartial(path, force)
}

// checkUnused refuses a target on which a QEMU process holds its write lock.
func checkUnused(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the target: %w", err)
	}
	defer f.Close()
	// QEMU's bytes 100 and up say which permissions are in use, 200 and up which are not shared.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return nil // a file system without such locks: QEMU has none there either
	}
	if lock.Type != unix.F_UNLCK {
		return fmt.Errorf("%s: %w", path, ErrInUse)
	}
	return nil
}

func createPartial(path string, force bool) (*File, error) {
	partial := path + ".partial"
	flags := os.O_RDWR | os.O_CREATE | os.O_EXCL | syscall.O_NOFOLLOW
	f, err := os.OpenFile(partial, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		// What an earlier restore left, unless another one is at work: the lock tells.
		if f, err = reusePartial(partial); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("create the target: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: another restore is writing it: %w", partial, ErrInUse)
	}
	return &File{File: f, path: path, partial: partial, force: force, behind: newWriteBehind(f)}, nil
}

func reusePartial(partial string) (*os.File, error) {
	f, err := os.OpenFile(partial, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open what an earlier restore left: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: another restore is writing it: %w", partial, ErrInUse)
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, fmt.Errorf("empty what an earlier restore left: %w", err)
	}
	return f, nil
}

func openDevice(path string, sizeBytes int64) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0) // O_EXCL: fails while the device is mounted
	if errors.Is(err, syscall.EBUSY) {
		return nil, fmt.Errorf("%s: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("open the target: %w", err)
	}
	end, err := f.Seek(0, 2)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("size of the target: %w", err)
	}
	if end < sizeBytes {
		f.Close()
		return nil, fmt.Errorf("%s holds %d bytes, the disk %d: %w", path, end, sizeBytes, ErrTooSmall)
	}
	return &File{File: f, path: path, device: true, behind: newWriteBehind(f)}, nil
}

// Partial is where the target lies until Publish.
func (f *File) Partial() string {
	if f.device {
		return f.path
	}
	return f.partial
}

// Publish makes the target durable and gives it its name.
func (f *File) Publish() error {
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync the target: %w", noSpace(err))
	}
	if f.device {
		return nil
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if f.force {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, f.partial, unix.AT_FDCWD, f.path, flags)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s appeared meanwhile: %w", f.path, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("name the target: %w", err)
	}
	return syncFolder(f.path)
}

// Discard gives the target up: a file under construction is removed, a device is left as it is.
func (f *File) Discard() error {
	defer f.Close()
	if f.device {
		return nil
	}
	return os.Remove(f.partial)
}

// Keep leaves a file that lacks ranges as path.partial, for salvage.
func (f *File) Keep() error {
	defer f.Close()
	return f.Sync()
}

func syncFolder(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("open the target's folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync the target's folder: %w", err)
	}
	return nil
}

func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// RawTarget writes a disk byte for byte into a File.
type RawTarget struct {
	file  *File
	fresh bool
}

// NewRawTarget makes f, when it is a file, sizeBytes long, without allocating anything.
func NewRawTarget(f *File, sizeBytes int64) (*RawTarget, error) {
	if !f.device {
		if err := f.Truncate(sizeBytes); err != nil {
			return nil, fmt.Errorf("set the size of the target: %w", noSpace(err))
		}
	}
	return &RawTarget{file: f, fresh: !f.device}, nil
}

func (t *RawTarget) WriteAt(p []byte, off int64) (int, error) {
	n, err := t.file.behind.WriteAt(p, off)
	return n, noSpace(err)
}

// Align is one sector: raw targets take any range.
func (t *RawTarget) Align() int64 { return 512 }

// Zero leaves a hole in a fresh file. On a device it asks the kernel for zeros, and writes them where the kernel cannot.
func (t *RawTarget) Zero(ctx context.Context, off, n int64) error {
	if t.fresh {
		return nil
	}
	const step = 1 << 30 // so that a cancelled restore ends soon
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		part := min(n, step)
		err := unix.Fallocate(int(t.file.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, part)
		if err != nil {
			err = t.writeZeros(ctx, off, part)
		}
		if err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (t *RawTarget) writeZeros(ctx context.Context, off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		part := min(n, int64(len(zeros)))
		if _, err := t.file.behind.WriteAt(zeros[:part], off); err != nil {
			return noSpace(err)
		}
		off, n = off+part, n-part
	}
	return nil
}
