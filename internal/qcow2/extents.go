package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/qbackup/qbackup/internal/extent"
)

// Extents streams the disk's bytes [off, off+n): ascending, without gaps,
// neighbours merged. Zero marks ranges that are known to read as zeros from the
// tables of the images and from the holes of raw files, without reading data.
func (d *Disk) Extents(ctx context.Context, off, n int64) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		if off < 0 || n < 0 || off > d.Size()-n {
			yield(extent.Extent{}, fmt.Errorf("extents of %d bytes at %d of a disk of %d bytes: %w", n, off, d.Size(), extent.ErrRange))
			return
		}
		e := emitter{yield: yield}
		err := d.extents(ctx, 0, off, n, &e)
		if err == nil {
			e.flush()
		} else if !errors.Is(err, errStopped) {
			yield(extent.Extent{}, fmt.Errorf("list extents of disk: %w", err))
		}
	}
}

// errStopped ends a walk whose consumer wants no more.
var errStopped = errors.New("stopped")

// emitter merges neighbours before it gives them out.
type emitter struct {
	yield   func(extent.Extent, error) bool
	pending extent.Extent
	stopped bool
}

func (e *emitter) add(off, n int64, zero bool) error {
	switch {
	case n == 0:
	case e.pending.Len > 0 && e.pending.Zero == zero:
		e.pending.Len += n
	default:
		e.flush()
		e.pending = extent.Extent{Off: off, Len: n, Zero: zero}
	}
	if e.stopped {
		return errStopped
	}
	return nil
}

func (e *emitter) flush() {
	if e.pending.Len > 0 && !e.stopped {
		e.stopped = !e.yield(e.pending, nil)
	}
	e.pending.Len = 0
}

// extents describes a range as layer number depth has it; below the last layer,
// and beyond the end of this one, there are zeros.
func (d *Disk) extents(ctx context.Context, depth int, off, n int64, e *emitter) error {
	if depth == len(d.stack) {
		return e.add(off, n, true)
	}
	l := d.stack[depth]
	have := min(n, max(0, l.size-off))
	if have > 0 {
		if err := d.extentsInside(ctx, depth, off, have, e); err != nil {
			return err
		}
	}
	return e.add(off+have, n-have, true)
}

// extentsInside is extents for a range that lies within the layer.
func (d *Disk) extentsInside(ctx context.Context, depth int, off, n int64, e *emitter) error {
	l := d.stack[depth]
	if l.image == nil {
		return l.rawExtents(ctx, off, n, e)
	}
	for m, err := range l.image.Mappings(ctx, off, n) {
		if err != nil {
			return fmt.Errorf("%s: %w", l.path, err)
		}
		if m.Kind == Unallocated {
			err = d.extents(ctx, depth+1, m.Off, m.Len, e)
		} else {
			err = e.add(m.Off, m.Len, m.Kind == Zero)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rawExtents asks the file for its holes, where it can tell.
func (l *layer) rawExtents(ctx context.Context, off, n int64, e *emitter) error {
	finder, ok := l.data.(HoleFinder)
	if !ok {
		return e.add(off, n, false)
	}
	end := off + n
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, stop, err := finder.NextData(off)
		if errors.Is(err, io.EOF) {
			return e.add(off, end-off, true)
		}
		if err != nil {
			return fmt.Errorf("%s: find holes: %w", l.path, err)
		}
		if start < off || stop <= start {
			return fmt.Errorf("%s: find holes: data [%d,%d) after %d", l.path, start, stop, off)
		}
		start, stop = min(start, end), min(stop, end)
		if err := e.add(off, start-off, true); err != nil {
			return err
		}
		if err := e.add(start, stop-start, false); err != nil {
			return err
		}
		off = stop
	}
	return nil
}
