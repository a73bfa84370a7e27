package blockmap

import (
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// spread gives data at both ends of [from, to), or for all of it when it is short.
func spread(from, to int64) []Span {
	const end = fan + fan/2
	first := Span{First: from, Count: to - from, Loc: format.Location{Run: ident.RunID{3}, Pack: 1}}
	if to-from <= 2*end {
		return []Span{first}
	}
	first.Count = end
	return []Span{first, {First: from + end, Count: to - from - 2*end, Zero: true}, {First: to - end, Count: end, Loc: first.Loc}}
}

func collect(t *testing.T, r *Reader, first, count int64) (all []Span) {
	t.Helper()
	for s, err := range r.Spans(context.Background(), first, count) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func TestTheEdgesOfNodesAreExact(t *testing.T) {
	edges := []int64{0, 1, fan - 1, fan, fan + 1, 2 * fan, fan*fan - 1, fan * fan, fan*fan + 1, fan*fan + fan, 2 * fan * fan}
	for _, size := range edges[1:] {
		for i, from := range edges {
			for _, to := range edges[i+1:] {
				if to > size {
					continue
				}
				spans := spread(from, to)
				r := build(t, newMemory(), size, spans...)
				want := slices.Clone(spans)
				if from > 0 {
					want = slices.Insert(want, 0, Span{Count: from, Zero: true})
				}
				if to < size {
					want = append(want, Span{First: to, Count: size - to, Zero: true})
				}
				if got := collect(t, r, 0, size); !slices.Equal(got, want) {
					t.Fatalf("size %d, data [%d,%d): %v", size, from, to, got)
				}
				if got := collect(t, r, to-1, 1); len(got) != 1 || got[0].Zero || got[0].First != to-1 {
					t.Fatalf("size %d, data [%d,%d): the last block is %v", size, from, to, got)
				}
				if r.Root().Levels != format.TreeLevels(size) {
					t.Fatalf("size %d has %d levels", size, r.Root().Levels)
				}
			}
		}
	}
}

func TestNodesWrittenAreBoundedByWhatWasTouched(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ctx := context.Background()
		const blocks = 3*fan*fan + 17
		m := newMemory()
		var spans []Span
		for leaf := int64(0); leaf < blocks/fan; leaf += 97 {
			spans = append(spans, blockAt(leaf*fan+leaf%fan, uint32(leaf)))
		}
		old := build(t, m, blocks, spans...)
		before := len(m.nodes)
		root := old.Root()
		b, err := NewBuilder(&root, blocks, blocks, m, m)
		if err != nil {
			rt.Fatal(err)
		}
		touched := map[int64]bool{}
		for at := int64(0); ; {
			at += rapid.Int64Range(0, fan*fan).Draw(rt, "gap")
			n := min(rapid.Int64Range(1, 3*fan).Draw(rt, "length"), blocks-at)
			if n <= 0 {
				break
			}
			s := Span{First: at, Count: n, Zero: rapid.Bool().Draw(rt, "zero")}
			if !s.Zero {
				s.Loc = format.Location{Run: ident.RunID{4}, Ordinal: uint32(at % 1000)}
			}
			if err := b.Set(ctx, s); err != nil {
				rt.Fatal(err)
			}
			at += n
			for leaf := s.First / fan; leaf <= (at-1)/fan; leaf++ {
				touched[leaf] = true
			}
		}
		if _, err := b.Finish(ctx); err != nil {
			rt.Fatal(err)
		}
		inner := map[int64]bool{}
		for leaf := range touched {
			inner[leaf/fan] = true
		}
		if written, limit := len(m.nodes)-before, len(touched)+len(inner)+1; written > limit {
			rt.Fatalf("%d nodes written, %d leaves and %d inner nodes touched", written, len(touched), len(inner))
		}
	})
}
