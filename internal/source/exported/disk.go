package exported

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/nbd"
	"github.com/qbackup/qbackup/internal/source"
)

// Spec says which disk is exported where.
type Spec struct {
	// Name and SizeBytes are the disk's in its machine.
	Name      string
	SizeBytes int64
	// Socket is where QEMU's NBD server listens, and Export the export's name.
	Socket, Export string
	// Bitmap is the bitmap that says what is dirty; empty: all of the disk is read.
	Bitmap string
	// Extra are ranges that are dirty for other reasons. Ascending.
	Extra []extent.Extent
	// Keep is called with each connection; see nbd.Options.
	Keep func(net.Conn) error
	// Explain finds out what became of the cut when a connection was lost.
	Explain func(error) error
	// Why says why the cut was given up; nil: it was not.
	Why func() error
}

// Disk is one exported disk. It is a source.Disk.
type Disk struct {
	spec       Spec
	client     *nbd.Client
	bits       *nbd.Client     // nil: there is no bitmap
	dirtyBytes int64           // -1: everything is read
	dirty      []extent.Extent // nil: none, or too many

	mu    sync.Mutex
	known []extent.Extent // all of Extents, once it was read to the end; nil: not, or too many
}

var _ source.Disk = (*Disk)(nil)

// Connect opens an export, which must have the disk's size, and counts what is dirty.
func Connect(ctx context.Context, s Spec) (*Disk, error) {
	d := &Disk{spec: s, dirtyBytes: -1}
	var err error
	if d.client, err = s.dial(ctx, nbd.Allocation, connections); err != nil {
		return nil, err
	}
	if d.client.Size() != s.SizeBytes {
		return d, fmt.Errorf("connect to disk %s: %w: it had %d bytes, and has %d", s.Name, source.ErrChanged, s.SizeBytes, d.client.Size())
	}
	if s.Bitmap == "" {
		return d, nil
	}
	// QEMU answers for all contexts of a connection, whatever it was asked: where the
	// bits share one with the allocation, it walks the tables of all of the image.
	if d.bits, err = s.dial(ctx, nbd.DirtyBitmap(s.Bitmap), 1); err != nil {
		return d, err
	}
	if err := d.count(ctx); err != nil {
		return d, fmt.Errorf("count what is dirty on disk %s: %w", s.Name, err)
	}
	return d, nil
}

func (s Spec) dial(ctx context.Context, metaContext string, connections int) (*nbd.Client, error) {
	c, err := nbd.Dial(ctx, nbd.Address{Network: "unix", Address: s.Socket}, nbd.Options{
		Export: s.Export, Contexts: []string{metaContext}, Connections: connections, Whole: true, Keep: s.Keep,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to disk %s: %w", s.Name, err)
	}
	return c, nil
}

// count finds out how much is dirty, and remembers where unless that is long.
func (d *Disk) count(ctx context.Context) error {
	var ranges []extent.Extent
	d.dirtyBytes = 0
	for e, err := range d.marked(ctx) {
		if err != nil {
			return err
		}
		d.dirtyBytes += e.Len
		if len(ranges) <= knownExtents {
			ranges = append(ranges, e)
		}
	}
	if len(ranges) <= knownExtents {
		d.dirty = ranges
	}
	return nil
}

// Name gives the disk's name in the machine.
func (d *Disk) Name() string { return d.spec.Name }

// Size gives the virtual size in bytes.
func (d *Disk) Size() int64 { return d.spec.SizeBytes }

// DirtyBytes counts what bits and extra ranges name, once each.
func (d *Disk) DirtyBytes() int64 { return d.dirtyBytes }

// Check tells whether the export can still be read.
func (d *Disk) Check() error {
	err := d.client.Err()
	if d.bits != nil {
		err = errors.Join(err, d.bits.Err())
	}
	if err != nil {
		return d.explain(err)
	}
	return d.spec.Why()
}

// Close ends the connections. A nil Disk has none.
func (d *Disk) Close() error {
	if d == nil {
		return nil
	}
	err := d.client.Close()
	if d.bits != nil {
		err = errors.Join(err, d.bits.Close())
	}
	return err
}

// ReadAt reads the disk as it was.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.spec.Why(); err != nil {
		return 0, err
	}
	n, err := d.client.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.explain(err)
	}
	return n, err
}

// explain finds out whether a read failed because the cut has ended.
func (d *Disk) explain(err error) error {
	if why := d.spec.Why(); why != nil {
		return why
	}
	if errors.Is(err, nbd.ErrLost) || errors.Is(err, nbd.ErrClosed) {
		return d.spec.Explain(err)
	}
	return fmt.Errorf("read disk %s from QEMU: %w", d.spec.Name, err)
}

// Extents streams what to back up. QEMU is asked once, unless the answer is long.
func (d *Disk) Extents(ctx context.Context) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		d.mu.Lock()
		ranges := d.known
		d.mu.Unlock()
		if ranges != nil {
			extent.Of(ranges...)(yield)
			return
		}
		few := true
		for e, err := range d.ask(ctx) {
			if why := d.spec.Why(); why != nil {
				err = why
			} else if err != nil && ctx.Err() == nil {
				err = d.explain(err)
			}
			if !yield(e, err) || err != nil {
				return
			}
			if few = few && len(ranges) < knownExtents; few {
				ranges = append(ranges, e)
			}
		}
		if few {
			d.mu.Lock()
			d.known = ranges
			d.mu.Unlock()
		}
	}
}

// ask gets Extents from QEMU.
func (d *Disk) ask(ctx context.Context) extent.Seq {
	switch {
	case d.spec.Bitmap == "":
		return describe(ctx, d.client, extent.Of(extent.Extent{Len: d.Size()}))
	case d.dirty != nil:
		return describe(ctx, d.client, extent.Of(d.dirty...))
	default:
		return describe(ctx, d.client, d.marked(ctx))
	}
}

// marked is everything that the bitmap marks, and the extra ranges.
func (d *Disk) marked(ctx context.Context) extent.Seq {
	extra := extent.Intersect(extent.Of(d.spec.Extra...), extent.Of(extent.Extent{Len: d.Size()}))
	return extent.Union(extra, d.bits.Dirty(ctx, nbd.DirtyBitmap(d.spec.Bitmap), 0, d.Size()))
}
