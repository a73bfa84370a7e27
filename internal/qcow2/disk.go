package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// DiskOptions are the choices of OpenDisk. The zero value opens images without
// backing and data files.
type DiskOptions struct {
	// Opener opens backing and data files; nil refuses them all.
	Opener Opener
	// CacheBytes bounds the memory for the L2 tables of all layers; 16 MiB
	// when zero. Each layer holds two tables whatever it says.
	CacheBytes int64
	// Raw says that the file is a raw disk. Whether it is cannot be seen from
	// the file, because a guest may write anything into a raw disk.
	Raw bool
}

// cacheShare gives half of the budget to the top image, which is read first and
// most, and divides the rest among the backing files that there may be.
func (o DiskOptions) cacheShare(role Role) int64 {
	budget := o.CacheBytes
	if budget <= 0 {
		budget = defaultCacheBytes
	}
	if role == Top {
		return max(budget/2, 1)
	}
	return max(budget/2/MaxBackingDepth, 1)
}

// Disk is what a guest sees: an image with everything below it, or a raw file.
// It is safe for parallel use, and describes the files as they were when it was
// opened.
type Disk struct {
	stack   []*layer // the top first, each backed by the next
	layers  []Layer
	closers []io.Closer
}

// layer is one image with its data file, or one raw file.
type layer struct {
	path      string
	image     *Image // nil for raw
	data      File   // where Data mappings lie; for raw the file
	dataBytes int64
	size      int64 // as the layer above sees it
	unpacker  *unpacker
}

var _ io.ReaderAt = (*Disk)(nil)

// OpenDisk opens the disk in f, whose path is path. Only files that o.Opener
// opens are read besides f. Images that are marked corrupt or dirty are refused
// in every layer. The caller keeps f, and closes it after Close.
func OpenDisk(f File, path string, o DiskOptions) (*Disk, error) {
	d := &Disk{}
	c := chain{options: o, disk: d}
	if err := c.open(f, path); err != nil {
		if closeErr := d.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
		return nil, err
	}
	return d, nil
}

func (d *Disk) append(l *layer, shown Layer) {
	d.stack = append(d.stack, l)
	d.layers = append(d.layers, shown)
}

// Close closes what the Opener opened.
func (d *Disk) Close() error {
	var all error
	for _, c := range d.closers {
		all = errors.Join(all, c.Close())
	}
	d.closers = nil
	return all
}

// Size returns the size of the disk in bytes, whole sectors: rounded down for
// images, and up for raw files, as QEMU does.
func (d *Disk) Size() int64 { return d.stack[0].size }

// Image returns the top image; nil when the disk is a raw file.
func (d *Disk) Image() *Image { return d.stack[0].image }

// Layers returns all files of the disk from the top to the bottom, a data file
// behind its image. The slice must not be changed.
func (d *Disk) Layers() []Layer { return d.layers }

// ReadAt reads as io.ReaderAt says: less than len(p) bytes only with an error,
// which is io.EOF at the end of the disk.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read disk at %d: negative offset", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	room := d.Size() - off
	if room <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), room))
	if err := d.read(0, p[:n], off); err != nil {
		return 0, fmt.Errorf("read disk at %d: %w", off, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// read fills p from layer number depth, or with zeros below the last one. The
// range may end beyond the layer, which reads as zeros.
func (d *Disk) read(depth int, p []byte, off int64) error {
	if depth == len(d.stack) {
		clear(p)
		return nil
	}
	l := d.stack[depth]
	have := min(int64(len(p)), max(0, l.size-off))
	clear(p[have:])
	if p = p[:have]; len(p) == 0 {
		return nil
	}
	if l.image == nil {
		if err := readPadded(l.data, p, off, l.dataBytes); err != nil {
			return fmt.Errorf("%s: %w", l.path, readFailed("raw file", off, err))
		}
		return nil
	}
	for m, err := range l.image.Mappings(context.Background(), off, have) {
		if err != nil {
			return fmt.Errorf("%s: %w", l.path, err)
		}
		part := p[m.Off-off:][:m.Len]
		if m.Kind == Unallocated {
			// Its error names the layer already.
			if err := d.read(depth+1, part, m.Off); err != nil {
				return err
			}
		} else if err := l.read(m, part); err != nil {
			return fmt.Errorf("%s: %w", l.path, err)
		}
	}
	return nil
}

// read fills p with the bytes of a mapping of this layer.
func (l *layer) read(m Mapping, p []byte) error {
	switch m.Kind {
	case Data:
		if err := readPadded(l.data, p, m.Host, l.dataBytes); err != nil {
			return readFailed("data cluster", m.Host, err)
		}
	case Compressed:
		return l.unpacker.read(l.data, l.dataBytes, m, p)
	default:
		clear(p)
	}
	return nil
}
