package blockmap

import (
	"context"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// Visit is one node of a map as Walk finds it.
type Visit struct {
	Ref           format.NodeRef
	Level         int
	First, Blocks int64        // what it covers of the disk
	Node          *format.Node // nil with Err
	Err           error        // why it cannot be read; what lies below it is not visited
}

// Walk visits every node of the map, each before the nodes below it, in ascending
// order. A node that cannot be read is visited with its error, and the walk goes
// on beside it. An error from visit ends the walk and is returned, as is the end
// of ctx.
func (r *Reader) Walk(ctx context.Context, visit func(Visit) error) error {
	if r.root.Node.IsZero() {
		return nil
	}
	if r.root.Levels < 1 || r.root.Levels > format.MaxLevels {
		return fmt.Errorf("walk a map of %d levels: %w", r.root.Levels, format.ErrCorrupt)
	}
	return r.visit(ctx, r.root.Node, r.root.Levels-1, 0, visit)
}

func (r *Reader) visit(ctx context.Context, ref format.NodeRef, level int, first int64, visit func(Visit) error) error {
	v := Visit{Ref: ref, Level: level, First: first}
	v.Node, v.Err = fetch(ctx, r.src, ref, level, first)
	if err := ctx.Err(); err != nil {
		return err
	}
	v.Blocks = min(r.blocks-first, format.NodeBlocks(level))
	if err := visit(v); err != nil || v.Err != nil {
		return err
	}
	for _, c := range v.Node.Children {
		childFirst := first + int64(c.Index)*format.NodeBlocks(level-1)
		if childFirst >= r.blocks {
			break
		}
		if err := r.visit(ctx, c.Ref, level-1, childFirst, visit); err != nil {
			return err
		}
	}
	return nil
}

// Usage is what a map depends on, and how scattered it is.
type Usage struct {
	Runs       []ident.RunID // every run that has a node or data of the map, ascending
	Nodes      int64
	Spans      int64 // data spans of all leaves
	DataBlocks int64
	FreshSpans int64 // data spans if all data had been written in one run, in order
}

// Fragmented reports whether the map has at least four times the spans of a fresh
// one: a reason to store it as new.
func (u Usage) Fragmented() bool { return u.Spans >= 4*u.FreshSpans && u.Spans > format.NodeFanout }

// Measure reads the whole map. The first node that cannot be read is the error.
func (r *Reader) Measure(ctx context.Context) (Usage, error) {
	var u Usage
	runs := map[ident.RunID]struct{}{}
	err := r.Walk(ctx, func(v Visit) error {
		if v.Err != nil {
			return v.Err
		}
		u.Nodes++
		runs[v.Ref.Run] = struct{}{}
		end := -1
		for _, s := range v.Node.Spans {
			if s.Zero {
				continue
			}
			runs[s.Loc.Run] = struct{}{}
			u.Spans++
			u.DataBlocks += int64(s.Count)
			if s.Start != end {
				u.FreshSpans++
			}
			end = s.Start + s.Count
		}
		return nil
	})
	if err != nil {
		return Usage{}, err
	}
	for run := range runs {
		u.Runs = append(u.Runs, run)
	}
	slices.SortFunc(u.Runs, ident.RunID.Compare)
	return u, nil
}
