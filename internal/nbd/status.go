package nbd

import (
	"context"
	"fmt"
	"iter"
	"math"

	"github.com/qbackup/qbackup/internal/extent"
)

// StatusExtent is a range of the export for which a meta context has the same
// flags.
type StatusExtent struct {
	Off, Len int64
	Flags    uint32
}

// End returns the offset of the first byte after the range.
func (e StatusExtent) End() int64 { return e.Off + e.Len }

// Status streams what one of Options.Contexts says of [off, off+n): ascending,
// without gaps, neighbours with the same flags merged. An error ends the stream;
// what came before it is right, and not all.
//
// The server is asked again and again, as it may answer for less than it was
// asked. A cancelled ctx ends the stream at once; the answer that is still to come
// is read and dropped, and the client can be used further.
func (c *Client) Status(ctx context.Context, metaContext string, off, n int64) iter.Seq2[StatusExtent, error] {
	return c.status(ctx, metaContext, off, n, math.MaxUint32)
}

// status is Status for the flags in mask.
func (c *Client) status(ctx context.Context, metaContext string, off, n int64, mask uint32) iter.Seq2[StatusExtent, error] {
	return func(yield func(StatusExtent, error) bool) {
		fail := func(err error) {
			yield(StatusExtent{}, fmt.Errorf("status %s of NBD export: %w", metaContext, err))
		}
		place, ok := c.places[metaContext]
		if !ok {
			fail(ErrNoContext)
			return
		}
		if off < 0 || n < 0 || off > c.export.size-n {
			fail(fmt.Errorf("%d bytes at %d of %d: %w", n, off, c.export.size, extent.ErrRange))
			return
		}
		var held StatusExtent // the last one, which may go on
		for at, end := off, off+n; at < end; at = held.End() {
			found, err := c.ask(ctx, place, at, end)
			if err != nil {
				if held.Len == 0 || yield(held, nil) {
					fail(err)
				}
				return
			}
			for e := range found.extents(at, end) {
				e.Flags &= mask
				if held.Len > 0 && held.Flags == e.Flags {
					held.Len += e.Len
				} else if old := held; old.Len == 0 || yield(old, nil) {
					held = e
				} else {
					return
				}
			}
		}
		if held.Len > 0 {
			yield(held, nil)
		}
	}
}

// answer is what the server said of a range that begins at off.
type answer struct {
	off  int64
	runs []statusRun
}

// extents gives the part of an answer inside [at, end).
func (a answer) extents(at, end int64) iter.Seq[StatusExtent] {
	return func(yield func(StatusExtent) bool) {
		from := a.off
		for _, run := range a.runs {
			to := from + int64(run.n)
			e := StatusExtent{Off: max(from, at), Flags: run.flags}
			e.Len = min(to, end) - e.Off
			if e.Len > 0 && !yield(e) {
				return
			}
			from = to
		}
	}
}

// ask sends one block status about the blocks from at on, up to end at most, and
// waits for the answer. The answer says something about at.
func (c *Client) ask(ctx context.Context, place int, at, end int64) (answer, error) {
	if err := ctx.Err(); err != nil {
		return answer{}, err
	}
	block := c.export.minBlock
	off := at - at%block
	n := min(end-off, maxStatusBytes)
	if rest := n % block; rest > 0 {
		n = min(n+block-rest, c.export.size-off)
	}
	s := c.slot(ctx.Done())
	if s == nil {
		return answer{}, ctx.Err()
	}
	reply := &statusReply{want: place, expected: 1<<len(c.places) - 1, ready: make(chan struct{})}
	s.request = request{command: commandBlockStatus, off: off, n: n, caller: reply, status: reply, arrived: s.request.arrived}
	c.send(s)
	select {
	case <-reply.ready:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	if reply.err != nil {
		return answer{}, reply.err
	}
	if covered := n - reply.runs.room; off+covered <= at {
		return answer{}, violation("a status of the %d bytes at %d that ends before byte %d", n, off, at)
	}
	return answer{off: off, runs: reply.runs.runs}, nil
}
