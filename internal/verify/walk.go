package verify

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// walk goes over maps. The first walk looks at every node once and notes what is damaged; the second (collect) goes into
// every damaged subtree again for each point that has it, and notes the ranges.
type walk struct {
	m       *machine
	seen    *nodeSet
	tokens  chan struct{} // each is a goroutine; without one the caller does the work itself
	collect bool
}

func (m *machine) newWalk(collect bool) *walk {
	return &walk{m: m, seen: newNodeSet(nodesRemembered), tokens: make(chan struct{}, m.o.Workers), collect: collect}
}

// walkAll is the first walk, over all points in the order of time.
func (m *machine) walkAll(ctx context.Context) error {
	w := m.newWalk(false)
	for _, p := range m.points {
		if p.bad == nil {
			if err := w.point(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walk) point(ctx context.Context, p *point) error {
	for _, d := range p.record.Mapped() {
		if d.Map.Node.IsZero() {
			continue
		}
		t := &diskWalk{walk: w, p: p, disk: d, blocks: format.Blocks(d.SizeBytes, w.m.r.BlockBytes()), src: w.m.r.Nodes(w.m.name)}
		t.name(d.Map.Node, d.Map.Levels-1, 0)
		if _, err := t.node(ctx, d.Map.Node, d.Map.Levels-1, 0); err != nil {
			return fmt.Errorf("walk the map of disk %s of point %s: %w", d.Name, p.record.Run, err)
		}
	}
	return nil
}

// diskWalk is a walk over one disk of a point.
type diskWalk struct {
	*walk
	p      *point
	disk   *format.DiskRecord
	blocks int64
	src    blockmap.Source
}

// report notes damage that costs a range of blocks.
func (w *diskWalk) report(f finding, first, count int64) {
	w.m.found.add(f)
	if !w.collect {
		return
	}
	blockBytes := w.m.r.BlockBytes()
	first, end := min(first, w.blocks), min(first+count, w.blocks)
	e := extent.Extent{Off: first * blockBytes, Len: min(end*blockBytes, w.disk.SizeBytes) - first*blockBytes}
	if e.Len > 0 {
		w.m.found.addRange(f, w.p.id(), w.p.time(), w.disk.Name, e)
	}
}

// node looks at the node that covers the blocks from first on, and at all below it.
func (w *diskWalk) node(ctx context.Context, ref format.NodeRef, level int, first int64) (outcome, error) {
	key := keyOfNode(ref, level, first)
	if o, known := w.seen.get(key); known && o.runs&^w.p.mask == 0 && !(w.collect && o.damaged) {
		return o, nil
	}
	n, bad, err := w.fetch(ctx, ref, level, first)
	if err != nil {
		return outcome{}, err
	}
	var o outcome
	switch {
	case bad != nil:
		w.report(*bad, first, format.NodeBlocks(level))
		o.damaged = true
	case level == 0:
		o, err = w.leaf(ctx, ref, n)
	default:
		o, err = w.children(ctx, n)
	}
	if err == nil {
		w.seen.put(key, o)
	}
	return o, err
}

// fetch reads a node, or says why it cannot be read.
func (w *diskWalk) fetch(ctx context.Context, ref format.NodeRef, level int, first int64) (*format.Node, *finding, error) {
	key := format.MapKey(w.m.name, ref.Run, ref.Object)
	object, isBad := w.m.badMaps[mapID{ref.Run, ref.Object}]
	n, err := w.src.Node(ctx, ref)
	if err == nil {
		err = n.CheckPlace(level, first)
	}
	if err == nil {
		return n, nil, nil
	}
	problem, damaged := judge(err)
	if !damaged || errors.Is(err, repo.ErrFormat) {
		return nil, nil, err
	}
	if isBad {
		return nil, &object, nil
	}
	var d *repo.Damage
	if errors.As(err, &d) {
		problem, _ = judge(d.Err)
	}
	return nil, &finding{key, int64(ref.Offset), int64(ref.Length), problem}, nil
}

// children looks at the children of an inner node, in parallel.
func (w *diskWalk) children(ctx context.Context, n *format.Node) (outcome, error) {
	unit := format.NodeBlocks(n.Level - 1)
	outcomes := make([]outcome, len(n.Children))
	group, groupCtx := errgroup.WithContext(ctx)
	for i, c := range n.Children {
		first := n.FirstBlock + int64(c.Index)*unit
		outcomes[i].runs = w.m.bit(c.Ref.Run)
		if first >= w.blocks {
			continue
		}
		w.name(c.Ref, n.Level-1, first)
		look := func() error {
			o, err := w.node(groupCtx, c.Ref, n.Level-1, first)
			outcomes[i] = outcomes[i].with(o)
			return err
		}
		select {
		case w.tokens <- struct{}{}:
			group.Go(func() error {
				defer func() { <-w.tokens }()
				return look()
			})
		default:
			if err := look(); err != nil {
				group.Go(func() error { return err })
			}
		}
		if groupCtx.Err() != nil {
			break
		}
	}
	if err := group.Wait(); err != nil {
		return outcome{}, err
	}
	var all outcome
	for _, o := range outcomes {
		all = all.with(o)
	}
	return all, ctx.Err()
}

// name makes sure that a manifest names the map object of a node, so that whoever deletes garbage keeps it, and marks it as
// used. A node in an object that is not named can be read now, and perhaps not for long.
func (w *diskWalk) name(ref format.NodeRef, level int, first int64) {
	own := format.ManifestKey(w.m.name, w.p.record.Run)
	n, ok := w.p.needs[ref.Run]
	switch {
	case !ok:
		w.report(wholeObject(own, "it does not name run %s, to which a map refers", ref.Run), first, format.NodeBlocks(level))
	case n.bad == nil:
		i, ok := findMap(n.run.manifest, ref.Object)
		if !ok {
			w.report(wholeObject(format.ManifestKey(w.m.name, ref.Run), "it does not name map object %d, to which a map refers", ref.Object), first, format.NodeBlocks(level))
			return
		}
		n.run.mapUsed[i].Store(true)
	}
}

// leaf looks at the spans of a leaf.
func (w *diskWalk) leaf(ctx context.Context, ref format.NodeRef, n *format.Node) (outcome, error) {
	var o outcome
	for _, s := range n.Spans {
		span := blockmap.Span{First: n.FirstBlock + int64(s.Start), Count: int64(s.Count), Loc: s.Loc}
		span.Count = min(span.Count, w.blocks-span.First)
		if s.Zero || span.Count <= 0 {
			continue
		}
		o.runs |= w.m.bit(s.Loc.Run)
		damaged, err := w.span(ctx, ref, span)
		if err != nil {
			return outcome{}, err
		}
		o.damaged = o.damaged || damaged
	}
	return o, nil
}

// bit gives the bit of a run that a map refers to. A run that no point names has the last one, which a point has only when
// the machine has 64 runs or more: see outcome.
func (m *machine) bit(run ident.RunID) uint64 {
	if s := m.runs[run]; s != nil {
		return s.bit()
	}
	return 1 << 63
}
