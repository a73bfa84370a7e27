package blockmap

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

func build(t *testing.T, m *memory, blocks int64, spans ...Span) *Reader {
	t.Helper()
	b, err := NewBuilder(nil, 0, blocks, m, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range spans {
		if err := b.Set(context.Background(), s); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return NewReader(root, blocks, m)
}

func blockAt(first int64, ordinal uint32) Span {
	return Span{First: first, Count: 1, Loc: format.Location{Run: ident.RunID{2}, Ordinal: ordinal}}
}

func TestWalkGoesOnBesideANodeThatIsLost(t *testing.T) {
	ctx := context.Background()
	m := newMemory()
	r := build(t, m, 3*fan+10, blockAt(0, 0), blockAt(fan, 1), blockAt(3*fan+9, 2))
	top, err := m.Node(ctx, r.Root().Node)
	if err != nil {
		t.Fatal(err)
	}
	delete(m.nodes, top.Children[1].Ref)
	var lost []Visit
	visits := 0
	err = r.Walk(ctx, func(v Visit) error {
		visits++
		if v.Err != nil {
			lost = append(lost, v)
		} else if v.Level == 0 && v.First == 3*fan && v.Blocks != 10 {
			t.Errorf("the last leaf covers %d blocks", v.Blocks)
		}
		return nil
	})
	if err != nil || visits != 4 || len(lost) != 1 || lost[0].First != fan || lost[0].Blocks != fan || lost[0].Ref != top.Children[1].Ref {
		t.Fatalf("%d visits, lost %v, %v", visits, lost, err)
	}
	enough := errors.New("enough")
	if err := r.Walk(ctx, func(Visit) error { return enough }); !errors.Is(err, enough) {
		t.Fatalf("the walk went on: %v", err)
	}
	if _, err := r.Measure(ctx); err == nil {
		t.Fatal("a map with a lost node was measured")
	}
	if err := NewReader(format.MapRoot{Node: r.Root().Node, Levels: 99}, 5, m).Walk(ctx, func(Visit) error { return nil }); !errors.Is(err, format.ErrCorrupt) {
		t.Fatalf("a tree of 99 levels: %v", err)
	}
}

func TestUsageNamesAllRunsAndCountsFragments(t *testing.T) {
	m := newMemory()
	const blocks = 8 * fan
	var spans []Span
	for i := range int64(blocks) {
		spans = append(spans, Span{First: i, Count: 1, Loc: format.Location{Run: ident.RunID{byte(2 + i%2)}, Ordinal: uint32(i)}})
	}
	u, err := build(t, m, blocks, spans...).Measure(context.Background())
	if err != nil || u.Spans != blocks || u.FreshSpans != 8 || u.DataBlocks != blocks || u.Nodes != 9 || !u.Fragmented() {
		t.Fatalf("usage %+v, %v", u, err)
	}
	if want := []ident.RunID{{1}, {2}, {3}}; !slices.Equal(u.Runs, want) {
		t.Fatalf("runs %v, want that of the nodes and both of the data", u.Runs)
	}
	u, err = build(t, m, blocks, Span{First: 0, Count: blocks, Loc: format.Location{Run: ident.RunID{2}}}).Measure(context.Background())
	if err != nil || u.Fragmented() || u.DataBlocks != blocks {
		t.Fatalf("usage of a fresh map %+v, %v", u, err)
	}
	if u, err := build(t, m, blocks).Measure(context.Background()); err != nil || u.Nodes != 0 || len(u.Runs) != 0 {
		t.Fatalf("usage of zeros %+v, %v", u, err)
	}
}
