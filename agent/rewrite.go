package agent

import (
	"context"
	"iter"

	"github.com/qbackup/qbackup/internal/repo/blockmap"
)

// spans is what a map says; *blockmap.Reader is one.
type spans interface {
	Spans(ctx context.Context, first, count int64) iter.Seq2[blockmap.Span, error]
}

// padded is the map of a disk that has grown since: zero where it had nothing.
type padded struct{ old *blockmap.Reader }

// Spans implements spans.
func (p padded) Spans(ctx context.Context, first, count int64) iter.Seq2[blockmap.Span, error] {
	return func(yield func(blockmap.Span, error) bool) {
		within := min(max(p.old.Blocks()-first, 0), count)
		if within > 0 {
			for span, err := range p.old.Spans(ctx, first, within) {
				if !yield(span, err) || err != nil {
					return
				}
			}
		}
		if within < count {
			yield(blockmap.Span{First: first + within, Count: count - within, Zero: true}, nil)
		}
	}
}

// setter takes a map in ascending order; *blockmap.Builder is one.
type setter interface {
	Set(ctx context.Context, span blockmap.Span) error
}

// overlay writes a map from nothing: the old map's spans, and over them what is
// set. The result is the same as changing the old map, but shares no node with
// it, so it depends on no run but those whose blocks it uses.
type overlay struct {
	old    spans
	blocks int64 // of the old map
	out    setter
	next   int64 // blocks below are written
}

// Set writes one span, after what the old map holds before it.
func (o *overlay) Set(ctx context.Context, span blockmap.Span) error {
	if err := o.copyUpTo(ctx, span.First); err != nil {
		return err
	}
	o.next = span.First + span.Count
	return o.out.Set(ctx, span)
}

// finish writes what the old map holds after the last span.
func (o *overlay) finish(ctx context.Context) error { return o.copyUpTo(ctx, o.blocks) }

func (o *overlay) copyUpTo(ctx context.Context, end int64) error {
	end = min(end, o.blocks)
	if o.next >= end {
		return nil
	}
	for span, err := range o.old.Spans(ctx, o.next, end-o.next) {
		if err != nil {
			return err
		}
		// What is never set is zero.
		if span.Zero {
			continue
		}
		if err := o.out.Set(ctx, span); err != nil {
			return err
		}
	}
	o.next = end
	return nil
}
