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

// object is a pack or a map object of the machine.
type object struct {
	kind format.KeyKind
	run  ident.RunID
	seq  uint32 // 0 for manifests
}

// reach is what points need: it only grows.
type reach struct {
	r       *repo.Repository
	name    ident.MachineName
	src     blockmap.Source
	roots   map[ident.RunID]bool
	objects map[object]struct{}
	nodes   *cache.Cache[format.NodeRef, struct{}]
}

func newReach(r *repo.Repository, name ident.MachineName) reach {
	return reach{
		r: r, name: name, src: r.Nodes(name), roots: map[ident.RunID]bool{}, objects: map[object]struct{}{},
		nodes: cache.New[format.NodeRef](nodesRememberedBytes, func(struct{}) int64 { return nodeMemoryBytes }),
	}
}

func (x *reach) has(o object) bool {
	_, ok := x.objects[o]
	return ok
}

func (x *reach) add(kind format.KeyKind, run ident.RunID, seq uint32) {
	x.objects[object{kind, run, seq}] = struct{}{}
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
		x.add(format.KeyManifest, d.Run, 0)
	}
	for _, e := range p.Manifest().Packs {
		x.add(format.KeyPack, record.Run, e.Seq)
	}
	for _, e := range p.Manifest().Maps {
		x.add(format.KeyMap, record.Run, e.Seq)
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
	x.add(format.KeyMap, ref.Run, ref.Object)
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
			x.add(format.KeyPack, s.Loc.Run, s.Loc.Pack)
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
