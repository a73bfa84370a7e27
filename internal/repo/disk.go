package repo

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// Disk reads a disk as it was at the point in time. Every byte it gives was checked
// against the hash of its block. It is safe for parallel use.
type Disk struct {
	point  *Point
	record *format.DiskRecord
	blocks *blockmap.Reader
}

// Size is the virtual size in bytes.
func (d *Disk) Size() int64 { return d.record.SizeBytes }

// Record is the disk's part of the point's record; it must not be changed.
func (d *Disk) Record() *format.DiskRecord { return d.record }

// Map says where each block lies.
func (d *Disk) Map() *blockmap.Reader { return d.blocks }

// Point is the point that the disk belongs to.
func (d *Disk) Point() *Point { return d.point }

// ReadAt implements io.ReaderAt. What cannot be read because the repository is
// damaged is a *Damage that names the ranges.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	return d.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext is ReadAt that ends with ctx. With an error other than io.EOF the
// content of p means nothing.
func (d *Disk) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read disk %s at %d: %w", d.record.Name, off, ErrRange)
	}
	if off >= d.Size() {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), d.Size()-off))
	if err := d.fill(ctx, p[:n], off); err != nil {
		return 0, fmt.Errorf("read disk %s of point %s: %w", d.record.Name, d.point.record.Run, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// fill reads all of p, which lies on the disk.
func (d *Disk) fill(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	blockBytes := d.point.r.BlockBytes()
	first := off / blockBytes
	count := (off+int64(len(p))-1)/blockBytes - first + 1
	q := &request{disk: d, p: p, off: off}
	for span, err := range d.blocks.Spans(ctx, first, count) {
		if err != nil {
			return d.lost(err, q.clip(first, count))
		}
		if span.Zero {
			zero := q.clip(span.First, span.Count)
			clear(p[zero.Off-off : zero.End()-off])
			continue
		}
		if err := q.addSpan(ctx, span); err != nil {
			return d.lost(err, q.clip(span.First, span.Count))
		}
	}
	fetches := q.plan()
	if len(fetches) == 1 {
		return q.run(ctx, fetches[0])
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readFetches)
	for _, f := range fetches {
		group.Go(func() error { return q.run(ctx, f) })
	}
	return group.Wait()
}

// lost adds to damage which part of the disk it concerns.
func (d *Disk) lost(err error, ranges ...extent.Extent) error {
	known, ok := asDamage(err)
	if !ok || len(known.Extents) > 0 {
		return err
	}
	named := *known
	named.Disk, named.Extents = d.record.Name, ranges
	return &named
}

// Extents covers [off, off+n) of the disk in ascending order, ranges of zeros
// marked; neighbours of one kind are joined.
func (d *Disk) Extents(ctx context.Context, off, n int64) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		if off < 0 || n < 0 || off > d.Size() || n > d.Size()-off {
			yield(extent.Extent{}, fmt.Errorf("extents of bytes %d+%d of disk %s: %w", off, n, d.record.Name, ErrRange))
			return
		}
		if n == 0 {
			return
		}
		blockBytes := d.point.r.BlockBytes()
		first := off / blockBytes
		count := (off+n-1)/blockBytes - first + 1
		var held extent.Extent
		for span, err := range d.blocks.Spans(ctx, first, count) {
			if err != nil {
				yield(extent.Extent{}, err)
				return
			}
			e := clip(span.First*blockBytes, span.End()*blockBytes, off, off+n)
			e.Zero = span.Zero
			if held.Len > 0 && held.Zero == e.Zero {
				held.Len += e.Len
				continue
			}
			if held.Len > 0 && !yield(held, nil) {
				return
			}
			held = e
		}
		if held.Len > 0 {
			yield(held, nil)
		}
	}
}

// clip is the part of [from, to) that lies in [low, high).
func clip(from, to, low, high int64) extent.Extent {
	from, to = max(from, low), min(to, high)
	return extent.Extent{Off: from, Len: to - from}
}
