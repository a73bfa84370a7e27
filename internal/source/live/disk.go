package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/nbd"
	"github.com/qbackup/qbackup/internal/source"
)

// disk is one disk of a cut.
type disk struct {
	cut    *cut
	number int
	found  found
	base   source.Base
	client *nbd.Client // nil until connected

	dirtyBytes int64 // -1: everything is read

	mu    sync.Mutex
	known []extent.Extent // all of Extents, once it was read to the end; nil: not, or too many
}

var _ source.Disk = (*disk)(nil)

func newDisk(c *cut, number int, f found, base source.Base) *disk {
	return &disk{cut: c, number: number, found: f, base: base, dirtyBytes: -1}
}

// name makes the name of something that is this disk's in QEMU.
func (d *disk) name(prefix string) string { return numbered(prefix, d.number) }

func (d *disk) incremental() bool { return !d.base.Run.IsZero() }

// records says whether a new bitmap begins with this cut.
func (d *disk) records() bool { return d.incremental() || d.base.AddFamily }

// newBitmap is the name of that bitmap. Bitmaps that were there go on recording, so
// it continues none of them.
func (d *disk) newBitmap() string {
	return ident.BitmapName{Family: d.base.Family, Stamp: d.cut.run}.String()
}

// granularity is the finest of the bitmaps that are copied.
func (d *disk) granularity() int64 {
	finest := int64(0)
	for _, b := range d.found.evidence.Bitmaps {
		if b.Usable() && (finest == 0 || b.GranularityBytes < finest) {
			finest = b.GranularityBytes
		}
	}
	return finest
}

// count learns how much is dirty.
func (d *disk) count(ctx context.Context) error {
	if !d.incremental() {
		return nil
	}
	n, err := extent.Total(d.dirty(ctx))
	d.dirtyBytes = n
	return err
}

// Name gives the disk's name in the machine.
func (d *disk) Name() string { return d.found.evidence.Name }

// Size gives the virtual size in bytes.
func (d *disk) Size() int64 { return d.found.evidence.SizeBytes }

// DirtyBytes counts what bits and extra ranges name, once each.
func (d *disk) DirtyBytes() int64 { return d.dirtyBytes }

// ReadAt reads the disk as it was.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.cut.watch.err(); err != nil {
		return 0, err
	}
	n, err := d.client.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.explain(err)
	}
	return n, err
}

// explain finds out whether a read failed because the cut has ended.
func (d *disk) explain(err error) error {
	if why := d.cut.watch.err(); why != nil {
		return why
	}
	if errors.Is(err, nbd.ErrLost) || errors.Is(err, nbd.ErrClosed) {
		return d.cut.session.gone(err)
	}
	return fmt.Errorf("read disk %s from QEMU: %w", d.Name(), err)
}

// Extents streams what to back up. QEMU is asked once, unless the answer is long.
func (d *disk) Extents(ctx context.Context) extent.Seq {
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
			if why := d.cut.watch.err(); why != nil {
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
func (d *disk) ask(ctx context.Context) extent.Seq {
	ranges := extent.Of(extent.Extent{Len: d.Size()})
	if d.incremental() {
		ranges = d.dirty(ctx)
	}
	return describe(ctx, d.client, ranges)
}

// dirty is everything that the frozen bits mark, and the base's extra ranges.
func (d *disk) dirty(ctx context.Context) extent.Seq {
	extra := extent.Intersect(extent.Of(d.base.Extra...), extent.Of(extent.Extent{Len: d.Size()}))
	return extent.Union(extra, d.client.Dirty(ctx, nbd.DirtyBitmap(frozenName), 0, d.Size()))
}
