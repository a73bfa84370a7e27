package blockmap

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/qbackup/qbackup/internal/repo/format"
)

// Reader reads the map of a disk of so many blocks.
type Reader struct {
	root   format.MapRoot
	blocks int64
	src    Source
}

// NewReader reads the map below root. Nothing is fetched before it is needed.
func NewReader(root format.MapRoot, blocks int64, src Source) *Reader {
	return &Reader{root: root, blocks: blocks, src: src}
}

// Blocks is the length of the disk.
func (r *Reader) Blocks() int64 { return r.blocks }

// Root is what the map was opened with.
func (r *Reader) Root() format.MapRoot { return r.root }

// Spans covers the blocks [first, first+count) with ascending spans, neighbours merged. The range must lie within the
// disk. An error ends the sequence.
func (r *Reader) Spans(ctx context.Context, first, count int64) iter.Seq2[Span, error] {
	return merged(func(yield func(Span, error) bool) {
		if first < 0 || count < 0 || count > r.blocks-first {
			yield(Span{}, fmt.Errorf("blocks %d+%d are not within the disk's %d", first, count, r.blocks))
			return
		}
		if count == 0 {
			return
		}
		level := r.root.Levels - 1
		w := walk{ctx, r.src, yield}
		if r.root.Node.IsZero() {
			w.zero(first, first+count)
			return
		}
		w.node(r.root.Node, level, 0, first, first+count)
	})
}

// LastData finds the last block below before that holds data, and reads no more nodes than lead there. False: there is none.
func (r *Reader) LastData(ctx context.Context, before int64) (Span, bool, error) {
	before = min(before, r.blocks)
	if before <= 0 || r.root.Node.IsZero() {
		return Span{}, false, nil
	}
	return r.lastBelow(ctx, r.root.Node, r.root.Levels-1, 0, before)
}

// lastBelow is LastData within the range of the node at start.
func (r *Reader) lastBelow(ctx context.Context, ref format.NodeRef, level int, start, before int64) (Span, bool, error) {
	n, err := fetch(ctx, r.src, ref, level, start)
	if err != nil {
		return Span{}, false, err
	}
	for _, s := range slices.Backward(n.Spans) {
		span := Span{First: start + int64(s.Start), Count: int64(s.Count), Zero: s.Zero, Loc: s.Loc}
		if !span.Zero && span.First < before {
			last := min(span.End(), before) - 1
			return span.Clip(last, last+1), true, nil
		}
	}
	for _, c := range slices.Backward(n.Children) {
		childStart := start + int64(c.Index)*format.NodeBlocks(level-1)
		if childStart >= before {
			continue
		}
		if span, found, err := r.lastBelow(ctx, c.Ref, level-1, childStart, before); found || err != nil {
			return span, found, err
		}
	}
	return Span{}, false, nil
}

// walk is one pass over a range. Its methods return false when the pass is over, for an error or for want of interest.
type walk struct {
	ctx   context.Context
	src   Source
	yield func(Span, error) bool
}

func (w *walk) zero(from, to int64) bool {
	return from >= to || w.yield(Span{First: from, Count: to - from, Zero: true}, nil)
}

// node yields the blocks [from, to), which lie within the range of the node at start.
func (w *walk) node(ref format.NodeRef, level int, start, from, to int64) bool {
	n, err := fetch(w.ctx, w.src, ref, level, start)
	if err != nil {
		w.yield(Span{}, err)
		return false
	}
	if level == 0 {
		return w.leaf(n, start, from, to)
	}
	unit := format.NodeBlocks(level - 1)
	for _, c := range n.Children {
		childStart := start + int64(c.Index)*unit
		childEnd := childStart + unit
		if childEnd <= from {
			continue
		}
		if childStart >= to {
			break
		}
		if !w.zero(from, min(childStart, to)) {
			return false
		}
		from = max(from, childStart)
		end := min(childEnd, to)
		if !w.node(c.Ref, level-1, childStart, from, end) {
			return false
		}
		from = end
	}
	return w.zero(from, to)
}

func (w *walk) leaf(n *format.Node, start, from, to int64) bool {
	for _, s := range n.Spans {
		span := Span{First: start + int64(s.Start), Count: int64(s.Count), Zero: s.Zero, Loc: s.Loc}
		if span.End() <= from {
			continue
		}
		if span.First >= to {
			break
		}
		if !w.zero(from, span.First) {
			return false
		}
		span = span.Clip(from, to)
		if !w.yield(span, nil) {
			return false
		}
		from = span.End()
	}
	return w.zero(from, to)
}

// fetch gets a node and makes sure that it is the one that belongs at this place.
func fetch(ctx context.Context, src Source, ref format.NodeRef, level int, start int64) (*format.Node, error) {
	n, err := src.Node(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("read the map node of blocks %d+%d: %w", start, format.NodeBlocks(level), err)
	}
	if err := n.CheckPlace(level, start); err != nil {
		return nil, err
	}
	return n, nil
}
