package offline

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
)

// frozenDisk is one disk of a cut.
type frozenDisk struct {
	image *image
	run   ident.RunID // the run of the cut
	base  source.Base
	print print
	watch *watch // nil with Options.Hold

	dirtyBytes int64 // -1: everything is read
	// readers says that others read the image, so that it cannot be written to.
	readers error
}

var _ source.Disk = (*frozenDisk)(nil)

// prepare checks that the base can be continued at all, and counts.
func (d *frozenDisk) prepare(ctx context.Context) error {
	d.dirtyBytes = -1
	if d.base.Run.IsZero() {
		return nil
	}
	if err := d.checkBase(); err != nil {
		return err
	}
	n, err := extent.Total(d.dirty(ctx))
	if err != nil {
		return fmt.Errorf("count dirty bytes: %w", err)
	}
	d.dirtyBytes = n
	return nil
}

// checkBase refuses an increment on a run that no usable bitmap speaks of. Which
// base is right was decided elsewhere; this only makes sure that the decision was
// made on this image.
func (d *frozenDisk) checkBase() error {
	for _, b := range d.image.ours {
		if b.table != nil && b.name.Stamp == d.base.Run {
			return nil
		}
	}
	return &source.UsableError{Path: d.image.spec.Path,
		Err: fmt.Errorf("no usable bitmap of family %s continues run %s", d.base.Family, d.base.Run)}
}

// Name gives the disk's name in the machine.
func (d *frozenDisk) Name() string { return d.image.spec.Name }

// Size gives the virtual size in bytes.
func (d *frozenDisk) Size() int64 { return d.image.disk.Size() }

// DirtyBytes counts what bits and extra ranges name, once each.
func (d *frozenDisk) DirtyBytes() int64 { return d.dirtyBytes }

// ReadAt reads through the whole chain, as the guest would.
func (d *frozenDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.watch.err(); err != nil {
		return 0, err
	}
	return d.image.disk.ReadAt(p, off)
}

// Extents streams what to back up.
func (d *frozenDisk) Extents(ctx context.Context) extent.Seq {
	whole := extent.Of(extent.Extent{Len: d.Size()})
	if d.base.Run.IsZero() {
		return d.describe(ctx, whole)
	}
	return d.describe(ctx, d.dirty(ctx))
}

// describe says for each range where it is zero. Only the tables for the ranges
// themselves are read: a large disk with few dirty bits is done quickly.
func (d *frozenDisk) describe(ctx context.Context, ranges extent.Seq) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for r, err := range ranges {
			if err == nil {
				err = d.watch.err()
			}
			if err != nil {
				yield(extent.Extent{}, err)
				return
			}
			for e, err := range d.image.disk.Extents(ctx, r.Off, r.Len) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// dirty is everything that any of our usable bitmaps marks, and the base's extra
// ranges. A union can be too much, never too little.
func (d *frozenDisk) dirty(ctx context.Context) extent.Seq {
	seqs := []extent.Seq{extent.Intersect(extent.Of(d.base.Extra...), extent.Of(extent.Extent{Len: d.Size()}))}
	for _, b := range d.image.ours {
		if b.table != nil {
			seqs = append(seqs, d.image.dirty(ctx, b))
		}
	}
	return extent.Union(seqs...)
}
