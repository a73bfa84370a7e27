package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/extent"
)

const (
	rangeBytes     = 4 << 20 // what one worker reads and writes at a time
	defaultWorkers = 8
	maxNamedRanges = 10       // in the text of a LostError
	salvageBytes   = 64 << 10 // a range that cannot be read is halved down to this, to give up no more than is lost
)

// Source is the disk to restore.
type Source interface {
	// ReadAtContext is ReadAt of io.ReaderAt, called in parallel. Every byte that it returns was checked.
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
	Size() int64
	// Extents covers [off, off+n) in ascending order, zero ranges marked.
	Extents(ctx context.Context, off, n int64) extent.Seq
}

// Target takes the disk's bytes. Its methods may be called in parallel for different ranges.
type Target interface {
	io.WriterAt
	// Zero makes a range read as zeros.
	Zero(ctx context.Context, off, n int64) error
	// Align is the unit in bytes that ranges begin and end on, but for the end of the disk.
	Align() int64
}

// Stats counts bytes of the disk. The caller owns it and may read it at any time.
type Stats struct {
	Written atomic.Int64 // data that is in the target
	Zero    atomic.Int64 // zeros, written or left as holes
}

// Options of Run and Stream.
type Options struct {
	Workers int // 0: 8
	// Salvage goes on after a range that cannot be read, so that one LostError names them all.
	Salvage func(error) bool // tells whether an error is damage to go on after; nil: stop at the first
	Stats   *Stats
}

// LostError says which ranges of the disk could not be restored, because the point is damaged there.
type LostError struct {
	Ranges []extent.Extent // ascending
	Err    error           // of the first range that failed
}

func (e *LostError) Error() string {
	var total int64
	var names []string
	for i, r := range e.Ranges {
		total += r.Len
		if i < maxNamedRanges {
			names = append(names, fmt.Sprintf("%d+%d", r.Off, r.Len))
		}
	}
	if more := len(e.Ranges) - maxNamedRanges; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("%d bytes could not be restored (offset+length: %s): %v", total, strings.Join(names, ", "), e.Err)
}

func (e *LostError) Unwrap() error { return e.Err }

// Run copies src to dst. After a nil error every byte of src was handed to dst; syncing dst is up to its owner.
func Run(ctx context.Context, src Source, dst Target, o Options) error {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	c := &copier{src: src, dst: dst, o: o, ranges: make(chan extent.Extent)}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.plan(ctx) })
	for range o.Workers {
		group.Go(func() error { return c.work(ctx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return c.lostError()
}

// copier is one Run.
type copier struct {
	src    Source
	dst    Target
	o      Options
	ranges chan extent.Extent

	mu   sync.Mutex
	lost []lostRange
}

type lostRange struct {
	extent.Extent
	err error
}

// plan hands out the data ranges, aligned as the target wants them, and then zeroes what lies between.
func (c *copier) plan(ctx context.Context) error {
	defer close(c.ranges)
	size := c.src.Size()
	all := extent.Of(extent.Extent{Len: size})
	data := extent.Align(dataOf(c.src.Extents(ctx, 0, size)), c.dst.Align(), size)
	for e, err := range extent.Split(data, rangeBytes) {
		if err != nil {
			return fmt.Errorf("read the map: %w", err)
		}
		select {
		case c.ranges <- e:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for e, err := range extent.Subtract(all, data) {
		if err != nil {
			return fmt.Errorf("read the map: %w", err)
		}
		if err := c.dst.Zero(ctx, e.Off, e.Len); err != nil {
			return fmt.Errorf("write zeros at %d: %w", e.Off, err)
		}
		c.o.Stats.Zero.Add(e.Len)
	}
	return nil
}

// dataOf leaves out the zero extents.
func dataOf(seq extent.Seq) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for e, err := range seq {
			if err == nil && e.Zero {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (c *copier) work(ctx context.Context) error {
	var buffer []byte
	for e := range c.ranges {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if buffer == nil {
			buffer = make([]byte, rangeBytes)
		}
		if err := c.copy(ctx, e, buffer[:e.Len]); err != nil {
			return err
		}
	}
	return nil
}

// copy restores one range. Where it cannot be read and the caller wants what there is, it goes on in halves.
func (c *copier) copy(ctx context.Context, e extent.Extent, buffer []byte) error {
	n, err := c.src.ReadAtContext(ctx, buffer, e.Off)
	if int64(n) == e.Len {
		return c.write(e, buffer)
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if c.o.Salvage == nil || !c.o.Salvage(err) || ctx.Err() != nil {
		return fmt.Errorf("read %d bytes at %d of the point: %w", e.Len, e.Off, err)
	}
	if unit := max(c.dst.Align(), salvageBytes); e.Len > unit {
		half := max(e.Len/2/unit*unit, unit)
		if err := c.copy(ctx, extent.Extent{Off: e.Off, Len: half}, buffer[:half]); err != nil {
			return err
		}
		return c.copy(ctx, extent.Extent{Off: e.Off + half, Len: e.Len - half}, buffer[half:])
	}
	c.mu.Lock()
	c.lost = append(c.lost, lostRange{e, err})
	c.mu.Unlock()
	return nil
}

func (c *copier) write(e extent.Extent, data []byte) error {
	if _, err := c.dst.WriteAt(data, e.Off); err != nil {
		return fmt.Errorf("write %d bytes at %d of the target: %w", e.Len, e.Off, err)
	}
	c.o.Stats.Written.Add(e.Len)
	return nil
}

func (c *copier) lostError() error {
	if len(c.lost) == 0 {
		return nil
	}
	slices.SortFunc(c.lost, func(a, b lostRange) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	e := &LostError{Err: c.lost[0].err}
	for _, l := range c.lost {
		if last := len(e.Ranges) - 1; last >= 0 && e.Ranges[last].End() == l.Off {
			e.Ranges[last].Len += l.Len
			continue
		}
		e.Ranges = append(e.Ranges, l.Extent)
	}
	return e
}
