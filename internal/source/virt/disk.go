package virt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/nbd"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

// frozenDisk is one disk of a cut.
type frozenDisk struct {
	cut      *cut
	evidence source.DiskEvidence
	base     source.Base
	facts    format.ImageFacts // as they were after the instant
	client   *nbd.Client       // nil until connected

	dirtyBytes int64 // -1: everything is read
}

var (
	_ source.Disk    = (*frozenDisk)(nil)
	_ source.Watched = (*frozenDisk)(nil)
)

func (d *frozenDisk) incremental() bool { return !d.base.Run.IsZero() }

// records says whether a new bitmap begins with the cut.
func (d *frozenDisk) records() bool { return d.incremental() || d.base.AddFamily }

// connect opens the disk's export, and learns how much is dirty.
func (d *frozenDisk) connect(ctx context.Context, socket string) error {
	contexts := []string{nbd.Allocation}
	if d.incremental() {
		contexts = append(contexts, nbd.DirtyBitmap(bitmapName))
	}
	o := nbd.Options{Export: d.Name(), Contexts: contexts, Connections: connectionsPerDisk}
	if d.cut.guard != nil {
		o.Keep = d.cut.guard.Keep
	}
	client, err := nbd.Dial(ctx, nbd.Address{Network: "unix", Address: socket}, o)
	if err != nil {
		return fmt.Errorf("connect to disk %s: %w", d.Name(), err)
	}
	d.client = client
	if client.Size() != d.Size() {
		return fmt.Errorf("connect to disk %s: %w: it had %d bytes, and has %d", d.Name(), source.ErrChanged, d.Size(), client.Size())
	}
	d.dirtyBytes = -1
	if d.incremental() {
		if d.dirtyBytes, err = extent.Total(d.dirty(ctx)); err != nil {
			return fmt.Errorf("count what is dirty on disk %s: %w", d.Name(), err)
		}
	}
	return nil
}

// Name gives the disk's name in the domain.
func (d *frozenDisk) Name() string { return d.evidence.Name }

// Size gives the virtual size in bytes.
func (d *frozenDisk) Size() int64 { return d.evidence.SizeBytes }

// DirtyBytes counts what bits and extra ranges name, once each.
func (d *frozenDisk) DirtyBytes() int64 { return d.dirtyBytes }

// Facts describe the image as it was after the instant.
func (d *frozenDisk) Facts() format.ImageFacts { return d.facts }

// ReadAt reads the disk as it was.
func (d *frozenDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.cut.watch.err(); err != nil {
		return 0, err
	}
	n, err := d.client.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.explain(context.Background(), err)
	}
	return n, err
}

// explain finds out whether a read failed because the cut has ended.
func (d *frozenDisk) explain(ctx context.Context, err error) error {
	if why := d.cut.watch.err(); why != nil {
		return why
	}
	if errors.Is(err, nbd.ErrLost) {
		return d.cut.explain(ctx, err)
	}
	return fmt.Errorf("read disk %s from QEMU: %w", d.Name(), err)
}

// Extents streams what to back up.
func (d *frozenDisk) Extents(ctx context.Context) extent.Seq {
	ranges := extent.Of(extent.Extent{Len: d.Size()})
	if d.incremental() {
		ranges = d.dirty(ctx)
	}
	return func(yield func(extent.Extent, error) bool) {
		for e, err := range describe(ctx, d.client, ranges) {
			if why := d.cut.watch.err(); why != nil {
				err = why
			} else if err != nil && ctx.Err() == nil {
				err = d.explain(ctx, err)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// dirty is everything that the bits mark, and the base's extra ranges.
func (d *frozenDisk) dirty(ctx context.Context) extent.Seq {
	extra := extent.Intersect(extent.Of(d.base.Extra...), extent.Of(extent.Extent{Len: d.Size()}))
	return extent.Union(extra, d.client.Dirty(ctx, nbd.DirtyBitmap(bitmapName), 0, d.Size()))
}
