package prune

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/cache"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// nodesRememberedBytes bounds the nodes that are known to have been walked; others are walked again.
const nodesRememberedBytes = 64 << 20

// nodeMemoryBytes is about what remembering one takes.
const nodeMemoryBytes = 160

// reach is what points need: it only grows.
type reach struct {
	r     *repo.Repository
	name  ident.MachineName
	src   blockmap.Source
	roots map[ident.RunID]bool
	runs  map[ident.RunID]*needs
	nodes *cache.Cache[format.NodeRef, struct{}]
}

// needs is what is needed of one run.
type needs struct {
	manifest    bool
	packs, maps map[uint32]struct{} // by seq
}

func newReach(r *repo.Repository, name ident.MachineName) reach {
	return reach{
		r: r, name: name, src: r.Nodes(name), roots: map[ident.RunID]bool{}, runs: map[ident.RunID]*needs{},
		nodes: cache.New[format.NodeRef](nodesRememberedBytes, func(struct{}) int64 { return nodeMemoryBytes }),
	}
}

// has tells whether an object of a run is needed.
func (x *reach) has(run ident.RunID, o object) (needed bool) {
	n := x.runs[run]
	if n == nil {
		return false
	}
	switch o.kind {
	case format.KeyManifest:
		return n.manifest
	case format.KeyPack:
		_, needed = n.packs[o.number]
	case format.KeyMap:
		_, needed = n.maps[o.number]
	}
	return needed
}

func (x *reach) of(run ident.RunID) *needs {
	n := x.runs[run]
	if n == nil {
		n = &needs{packs: map[uint32]struct{}{}, maps: map[uint32]struct{}{}}
		x.runs[run] = n
	}
	return n
}

// point adds what a point needs. What its own manifest names it has.
func (x *reach) point(ctx context.Context, record *format.Record) error {
	if x.roots[record.Run] {
		return nil
	}
	p, err := x.r.OpenRecord(ctx, record)
	if err != nil {
		return err
	}
	for _, d := range p.Dependencies() {
		x.of(d.Run).manifest = true
	}
	for _, e := range p.Manifest().Packs {
		x.of(record.Run).packs[e.Seq] = struct{}{}
	}
	for _, e := range p.Manifest().Maps {
		x.of(record.Run).maps[e.Seq] = struct{}{}
	}
	for _, d := range record.Mapped() {
		if d.Map.Node.IsZero() {
			continue
		}
		if err := x.node(ctx, d.Map.Node, d.Map.Levels-1, 0); err != nil {
			return fmt.Errorf("read the map of disk %s of point %s: %w", d.Name, record.Run, err)
		}
	}
	x.roots[record.Run] = true
	return nil
}

// node adds what a node and all below it refer to.
func (x *reach) node(ctx context.Context, ref format.NodeRef, level int, first int64) error {
	x.of(ref.Run).maps[ref.Object] = struct{}{}
	if _, known := x.nodes.Peek(ref); known {
		return nil
	}
	n, err := x.src.Node(ctx, ref)
	if err == nil {
		err = n.CheckPlace(level, first)
	}
	if err != nil {
		return err
	}
	for _, s := range n.Spans {
		if !s.Zero {
			x.of(s.Loc.Run).packs[s.Loc.Pack] = struct{}{}
		}
	}
	for _, c := range n.Children {
		if err := x.node(ctx, c.Ref, level-1, n.FirstBlock+int64(c.Index)*format.NodeBlocks(level-1)); err != nil {
			return err
		}
	}
	x.nodes.Add(ref, struct{}{})
	return nil
}
