package blockmap

import (
	"context"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/repo/format"
)

// Builder makes a map in one ascending pass. It holds one node per level, whatever the size of the disk.
type Builder struct {
	blocks int64
	levels int
	src    Source
	sink   Sink

	root  format.NodeRef
	runs  int     // RunsSinceRewrite of the result
	next  int64   // blocks before this one are settled
	path  []*open // by level; the nodes that are being changed, each the parent's child
	bytes []byte  // reused for the nodes that are written
}

// open is a node that is being changed.
type open struct {
	start    int64
	was      format.NodeRef // zero: the node is new
	old      *format.Node
	children []format.Child           // of an inner node, ascending
	cells    *[format.NodeFanout]cell // of a leaf
}

// cell is one block of a leaf.
type cell struct {
	data bool
	loc  format.Location
}

// NewBuilder starts from base, the map of a disk of baseBlocks blocks, or with nil from nothing: then every block is zero
// that is not set. A disk may have grown since base; what it grew by is zero until it is set. One that shrank needs
// a map from nothing.
func NewBuilder(base *format.MapRoot, baseBlocks, blocks int64, src Source, sink Sink) (*Builder, error) {
	b := &Builder{blocks: blocks, levels: format.TreeLevels(blocks), src: src, sink: sink}
	b.path = make([]*open, b.levels)
	if base == nil {
		return b, nil
	}
	if baseBlocks > blocks {
		return nil, fmt.Errorf("a map of %d blocks cannot be based on one of %d", blocks, baseBlocks)
	}
	b.runs = base.RunsSinceRewrite + 1
	if base.Node.IsZero() {
		return b, nil
	}
	if base.Levels > b.levels { // taller than need be, but right
		b.levels = base.Levels
		b.path = make([]*open, b.levels)
	}
	b.root = base.Node
	if base.Levels < b.levels {
		b.raise(base)
	}
	return b, nil
}

// raise puts nodes on top of a base whose tree is lower than the disk now needs. They are new, so they stay open until
// the pass leaves them.
func (b *Builder) raise(base *format.MapRoot) {
	b.root = format.NodeRef{}
	for level := base.Levels; level < b.levels; level++ {
		b.path[level] = &open{}
	}
	b.path[base.Levels].children = []format.Child{{Ref: base.Node}}
}

// Set says where the blocks of span lie. Spans come in ascending order and do not overlap.
func (b *Builder) Set(ctx context.Context, span Span) error {
	if span.Count < 1 || span.First < b.next || span.Count > b.blocks-span.First {
		return fmt.Errorf("blocks %d+%d are set after block %d of a disk of %d", span.First, span.Count, b.next, b.blocks)
	}
	b.next = span.End()
	if span.Zero {
		return b.zero(ctx, span.First, span.End())
	}
	for first := span.First; first < span.End(); {
		part := span.Clip(first, leafEnd(first))
		leaf, err := b.descend(ctx, 0, first)
		if err != nil {
			return err
		}
		for i := range part.Count {
			loc := part.Loc
			loc.Ordinal += uint32(i)
			leaf.cells[part.First+i-leaf.start] = cell{true, loc}
		}
		first = part.End()
	}
	return nil
}

func leafEnd(block int64) int64 { return block&^(format.NodeBlocks(0)-1) + format.NodeBlocks(0) }

// zero drops whole subtrees where the range covers them, so that its cost does not grow with its length.
func (b *Builder) zero(ctx context.Context, from, to int64) error {
	if to == b.blocks {
		to = format.NodeBlocks(b.levels - 1) // beyond the end of the disk all is zero anyway
	}
	for from < to {
		level := 0 // of the largest subtree that starts here and is covered
		for level < b.levels && from%format.NodeBlocks(level) == 0 && to-from >= format.NodeBlocks(level) {
			level++
		}
		if level == 0 {
			end := min(to, leafEnd(from))
			if err := b.zeroCells(ctx, from, end); err != nil {
				return err
			}
			from = end
			continue
		}
		if err := b.drop(ctx, level-1, from); err != nil {
			return err
		}
		from += format.NodeBlocks(level - 1)
	}
	return nil
}

func (b *Builder) zeroCells(ctx context.Context, from, to int64) error {
	empty, err := b.empty(ctx, 0, from)
	if err != nil || empty {
		return err
	}
	leaf, err := b.descend(ctx, 0, from)
	if err != nil {
		return err
	}
	clear(leaf.cells[from-leaf.start : to-leaf.start])
	return nil
}

// drop makes the subtree of a level that starts at block absent.
func (b *Builder) drop(ctx context.Context, level int, block int64) error {
	if level == b.levels-1 {
		b.root = format.NodeRef{}
		clear(b.path)
		return nil
	}
	empty, err := b.empty(ctx, level, block)
	if err != nil || empty {
		return err
	}
	if err := b.closeTo(ctx, level); err != nil {
		return err
	}
	parent, err := b.descend(ctx, level+1, block)
	if err != nil {
		return err
	}
	parent.setChild(int((block-parent.start)/format.NodeBlocks(level)), format.NodeRef{})
	return nil
}

// empty tells whether there is nothing at the node of a level that covers block, without opening nodes that do not exist.
func (b *Builder) empty(ctx context.Context, level int, block int64) (bool, error) {
	for l := b.levels - 1; l >= level; l-- {
		start := block &^ (format.NodeBlocks(l) - 1)
		if o := b.path[l]; o != nil && o.start == start {
			continue
		}
		var ref format.NodeRef
		if l == b.levels-1 {
			ref = b.root
		} else {
			parent, err := b.descend(ctx, l+1, block)
			if err != nil {
				return false, err
			}
			ref = parent.child(int((start - parent.start) / format.NodeBlocks(l)))
		}
		if ref.IsZero() {
			return true, nil
		}
	}
	return false, nil
}

// descend gives the open node of a level that covers block, closing what lies before it.
func (b *Builder) descend(ctx context.Context, level int, block int64) (*open, error) {
	start := block &^ (format.NodeBlocks(level) - 1)
	if o := b.path[level]; o != nil && o.start == start {
		return o, nil
	}
	if err := b.closeTo(ctx, level); err != nil {
		return nil, err
	}
	ref := b.root
	if level < b.levels-1 {
		parent, err := b.descend(ctx, level+1, block)
		if err != nil {
			return nil, err
		}
		ref = parent.child(int((start - parent.start) / format.NodeBlocks(level)))
	}
	o := &open{start: start, was: ref}
	if !ref.IsZero() {
		n, err := fetch(ctx, b.src, ref, level, start)
		if err != nil {
			return nil, err
		}
		o.old = n
		o.children = slices.Clone(n.Children)
	}
	if level == 0 {
		o.fillCells()
	}
	b.path[level] = o
	return o, nil
}

func (o *open) fillCells() {
	o.cells = new([format.NodeFanout]cell)
	if o.old == nil {
		return
	}
	for _, s := range o.old.Spans {
		if s.Zero {
			continue
		}
		for i := range s.Count {
			loc := s.Loc
			loc.Ordinal += uint32(i)
			o.cells[s.Start+i] = cell{true, loc}
		}
	}
}

func (o *open) child(index int) format.NodeRef {
	if i, ok := o.find(index); ok {
		return o.children[i].Ref
	}
	return format.NodeRef{}
}

func (o *open) find(index int) (int, bool) {
	return slices.BinarySearchFunc(o.children, index, func(c format.Child, index int) int { return c.Index - index })
}

// setChild sets a child, or with a zero reference removes it.
func (o *open) setChild(index int, ref format.NodeRef) {
	i, ok := o.find(index)
	switch {
	case ref.IsZero() && ok:
		o.children = slices.Delete(o.children, i, i+1)
	case ref.IsZero():
	case ok:
		o.children[i].Ref = ref
	default:
		o.children = slices.Insert(o.children, i, format.Child{Index: index, Ref: ref})
	}
}

// closeTo writes the open nodes from the leaf up to level, each into its parent.
func (b *Builder) closeTo(ctx context.Context, level int) error {
	for l := 0; l <= level; l++ {
		o := b.path[l]
		if o == nil {
			continue
		}
		ref, err := b.settle(ctx, l, o)
		if err != nil {
			return err
		}
		b.path[l] = nil
		if l == b.levels-1 {
			b.root = ref
			continue
		}
		parent := b.path[l+1]
		parent.setChild(int((o.start-parent.start)/format.NodeBlocks(l)), ref)
	}
	return nil
}

// settle gives the reference of what an open node became: the old one when it is what it was, none when it is all zero.
func (b *Builder) settle(ctx context.Context, level int, o *open) (format.NodeRef, error) {
	n := &format.Node{Level: level, FirstBlock: o.start, Children: o.children}
	if level == 0 {
		n.Spans = o.spans()
	}
	if len(n.Spans) == 0 && len(n.Children) == 0 {
		return format.NodeRef{}, nil
	}
	if o.old != nil && slices.Equal(n.Spans, o.old.Spans) && slices.Equal(n.Children, o.old.Children) {
		return o.was, nil
	}
	var err error
	if b.bytes, err = format.AppendNode(b.bytes[:0], n); err != nil {
		return format.NodeRef{}, err
	}
	ref, err := b.sink.PutNode(ctx, b.bytes)
	if err != nil {
		return format.NodeRef{}, fmt.Errorf("write the map node of blocks %d+%d: %w", o.start, format.NodeBlocks(level), err)
	}
	return ref, nil
}

// spans joins the cells of a leaf; zeros are what no span covers.
func (o *open) spans() []format.LeafSpan {
	var spans []format.LeafSpan
	var held Span
	keep := func() {
		if held.Count > 0 {
			spans = append(spans, format.LeafSpan{Start: int(held.First), Count: int(held.Count), Loc: held.Loc})
		}
	}
	for i, c := range o.cells {
		if !c.data {
			continue
		}
		s := Span{First: int64(i), Count: 1, Loc: c.loc}
		if held.Count > 0 && held.continuedBy(s) {
			held.Count++
			continue
		}
		keep()
		held = s
	}
	keep()
	return spans
}

// Finish writes what is still open and gives the root of the new map. The builder takes nothing after it.
func (b *Builder) Finish(ctx context.Context) (format.MapRoot, error) {
	b.next = b.blocks + 1
	if err := b.closeTo(ctx, b.levels-1); err != nil {
		return format.MapRoot{}, err
	}
	root := format.MapRoot{Node: b.root, RunsSinceRewrite: b.runs}
	if !b.root.IsZero() {
		root.Levels = b.levels
	}
	return root, nil
}
