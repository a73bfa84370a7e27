package qcow2

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// File is what an image lies in. ReadAt and WriteAt may be called in parallel,
// and ReadAt follows io.ReaderAt: io.EOF beyond the end, never short without an
// error.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes everything written so far durable, as fdatasync does.
	Sync() error
	// Size returns the length of the file or block device in bytes.
	Size() (int64, error)
}

// HoleFinder is implemented by a File that knows where it holds no data. It may
// be called in parallel.
type HoleFinder interface {
	// NextData returns the first stretch [start, end) of data at or after
	// off. Everything between off and start reads as zero. It returns io.EOF
	// when there is no more data.
	NextData(off int64) (start, end int64, err error)
}

// osFile is a File on a descriptor of the operating system.
type osFile struct{ f *os.File }

// NewOSFile makes a File of an open regular file or block device. It implements
// HoleFinder and io.Closer; closing it closes f.
func NewOSFile(f *os.File) File { return &osFile{f} }

func (o *osFile) ReadAt(p []byte, off int64) (int, error)  { return o.f.ReadAt(p, off) }
func (o *osFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off) }
func (o *osFile) Close() error                             { return o.f.Close() }

// Sync is fdatasync: it makes data and length durable, but not the times.
func (o *osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(o.f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "fdatasync", Path: o.f.Name(), Err: err}
		}
	}
}

// Size asks anew each time. A block device has no size in its inode, so there
// it is where seeking ends; nothing here depends on the file position.
func (o *osFile) Size() (int64, error) {
	info, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return info.Size(), nil
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		return o.f.Seek(0, io.SeekEnd)
	default:
		return 0, fmt.Errorf("%s: neither a regular file nor a block device", o.f.Name())
	}
}

// NextData asks the file system with SEEK_DATA and SEEK_HOLE. Where those are
// not known, as on block devices, everything is data.
func (o *osFile) NextData(off int64) (start, end int64, err error) {
	start, err = unix.Seek(int(o.f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err == nil {
		end, err = unix.Seek(int(o.f.Fd()), start, unix.SEEK_HOLE)
	}
	if err == nil && end > start && start >= off {
		return start, end, nil
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENXIO) {
		return 0, 0, &os.PathError{Op: "seek data", Path: o.f.Name(), Err: err}
	}
	size, err := o.Size()
	if err != nil {
		return 0, 0, err
	}
	if off >= size {
		return 0, 0, io.EOF
	}
	return off, size, nil
}

// readPadded fills p from off of a file that is size bytes long. What lies
// beyond the end is zero, as QEMU reads it: files are not padded to whole
// clusters. A file that ends earlier than it did when it was opened is an error.
func readPadded(f io.ReaderAt, p []byte, off, size int64) error {
	have := min(int64(len(p)), max(0, size-off))
	clear(p[have:])
	n, err := f.ReadAt(p[:have], off)
	if int64(n) == have {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
