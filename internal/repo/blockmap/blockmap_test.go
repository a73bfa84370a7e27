package blockmap

import (
	"context"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// memory keeps nodes and counts what is asked of it.
type memory struct {
	nodes  map[format.NodeRef][]byte
	offset uint32
	reads  int
	fail   error
}

func newMemory() *memory {
	return &memory{nodes: map[format.NodeRef][]byte{}, offset: format.MapHeaderBytes}
}

func (m *memory) PutNode(_ context.Context, b []byte) (format.NodeRef, error) {
	if m.fail != nil {
		return format.NodeRef{}, m.fail
	}
	ref := format.NodeRef{Run: ident.RunID{1}, Object: m.offset >> 20, Offset: m.offset&(1<<20-1) | 256, Length: uint32(len(b)), Hash: format.SumHash(b)}
	m.offset += 1 << 8
	m.nodes[ref] = append([]byte(nil), b...)
	return ref, nil
}

func (m *memory) Node(_ context.Context, ref format.NodeRef) (*format.Node, error) {
	m.reads++
	b, ok := m.nodes[ref]
	if !ok {
		return nil, errors.New("no such node")
	}
	return format.ParseNode(b)
}

// table is a map as it would be without a tree.
type table map[int64]format.Location

func (tb table) set(s Span) {
	for i := range s.Count {
		delete(tb, s.First+i)
		if !s.Zero {
			loc := s.Loc
			loc.Ordinal += uint32(i)
			tb[s.First+i] = loc
		}
	}
}

// setZeroFar is set for long stretches: it visits what is there instead of what is not.
func (tb table) setFar(s Span) {
	if !s.Zero {
		tb.set(s)
		return
	}
	for n := range tb {
		if n >= s.First && n < s.End() {
			delete(tb, n)
		}
	}
}

func check(t rapid.TB, r *Reader, want table, first, count int64) {
	t.Helper()
	next, seen := first, 0
	var before Span
	for s, err := range r.Spans(context.Background(), first, count) {
		if err != nil {
			t.Fatalf("spans: %v", err)
		}
		if s.First != next || s.Count < 1 || before.Count > 0 && before.continuedBy(s) {
			t.Fatalf("span %+v after %+v", s, before)
		}
		next, before = s.End(), s
		if s.Zero {
			for n := range want {
				if n >= s.First && n < s.End() {
					t.Fatalf("block %d is zero, want %v", n, want[n])
				}
			}
			continue
		}
		for i := range s.Count {
			loc := s.Loc
			loc.Ordinal += uint32(i)
			if want[s.First+i] != loc {
				t.Fatalf("block %d at %v, want %v", s.First+i, loc, want[s.First+i])
			}
			seen++
		}
	}
	if next != first+count {
		t.Fatalf("spans end at %d, want %d", next, first+count)
	}
	expected := 0
	for n := range want {
		if n >= first && n < first+count {
			expected++
		}
	}
	if seen != expected {
		t.Fatalf("%d blocks hold data, want %d", seen, expected)
	}
	checkLast(t, r, want, first+count)
}

// checkLast compares the last block with data below before.
func checkLast(t rapid.TB, r *Reader, want table, before int64) {
	t.Helper()
	last := int64(-1)
	for n := range want {
		if n < before {
			last = max(last, n)
		}
	}
	s, found, err := r.LastData(context.Background(), before)
	switch {
	case err != nil || found != (last >= 0):
		t.Fatalf("last block with data below %d: %v, %v, want block %d", before, found, err, last)
	case found && (s != Span{First: last, Count: 1, Loc: want[last]}):
		t.Fatalf("last block with data below %d is %+v, want block %d at %v", before, s, last, want[last])
	}
}

const fan = format.NodeFanout

var sizes = []int64{1, 2, fan - 1, fan, fan + 1, 5*fan + 7, fan*fan - 1, fan * fan, fan*fan + 1, 3*fan*fan + 5*fan + 1, fan*fan*fan + 17}

func TestAnyEditsReadBackAndShareWhatTheyDoNotTouch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		m := newMemory()
		blocks := rapid.SampledFrom(sizes).Draw(t, "blocks")
		want := table{}
		var root *format.MapRoot
		baseBlocks := blocks
		for range rapid.IntRange(1, 5).Draw(t, "generations") {
			if grow := rapid.SampledFrom(sizes).Draw(t, "grown"); grow > blocks && rapid.IntRange(0, 3).Draw(t, "grow") == 0 {
				blocks = grow
			}
			if rapid.IntRange(0, 5).Draw(t, "fresh") == 0 {
				root, want = nil, table{}
			}
			b, err := NewBuilder(root, baseBlocks, blocks, m, m)
			if err != nil {
				t.Fatal(err)
			}
			edit(t, b, blocks, want)
			got, err := b.Finish(ctx)
			if err != nil {
				t.Fatal(err)
			}
			root, baseBlocks = &got, blocks
			if len(want) == 0 && !got.Node.IsZero() {
				t.Fatalf("an empty map has a node")
			}
			check(t, NewReader(got, blocks, m), want, 0, blocks)
			first := rapid.Int64Range(0, blocks-1).Draw(t, "first")
			check(t, NewReader(got, blocks, m), want, first, rapid.Int64Range(0, blocks-first).Draw(t, "count"))
		}
	})
}

func edit(t *rapid.T, b *Builder, blocks int64, want table) {
	next := int64(0)
	for range rapid.IntRange(0, 12).Draw(t, "edits") {
		if next >= blocks {
			return
		}
		skip := rapid.SampledFrom([]int64{0, 1, fan - 1, fan, fan * fan / 2, fan * fan}).Draw(t, "skip")
		first := next + skip
		if first >= blocks {
			return
		}
		s := Span{First: first, Zero: rapid.Bool().Draw(t, "zero"), Count: rapid.Int64Range(1, 2000).Draw(t, "count")}
		if s.Zero {
			s.Count = rapid.SampledFrom([]int64{1, 5, fan, 3 * fan, fan * fan, blocks}).Draw(t, "zeros")
		} else {
			s.Loc = format.Location{Run: ident.RunID{byte(rapid.IntRange(1, 3).Draw(t, "run"))}, Pack: uint32(rapid.IntRange(0, 2).Draw(t, "pack")), Ordinal: uint32(rapid.IntRange(0, 99).Draw(t, "ordinal"))}
		}
		s.Count = min(s.Count, blocks-s.First)
		if err := b.Set(context.Background(), s); err != nil {
			t.Fatalf("set %+v: %v", s, err)
		}
		want.setFar(s)
		next = s.End()
	}
}

func TestAChangeWritesOnlyThePathToIt(t *testing.T) {
	ctx := context.Background()
	const blocks = 2*fan*fan + 100
	m := newMemory()
	b, _ := NewBuilder(nil, 0, blocks, m, m)
	for n := int64(0); n < blocks; n += 1000 {
		if err := b.Set(ctx, Span{First: n, Count: min(1000, blocks-n), Loc: format.Location{Run: ident.RunID{1}, Pack: uint32(n / 1000)}}); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	written, reads := len(m.nodes), m.reads
	b, _ = NewBuilder(&root, blocks, blocks, m, m)
	if err := b.Set(ctx, Span{First: fan*fan + 3, Count: 1, Loc: format.Location{Run: ident.RunID{2}}}); err != nil {
		t.Fatal(err)
	}
	changed, err := b.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(m.nodes) - written; got != 3 {
		t.Errorf("one block changed: %d nodes written, want leaf, inner node and root", got)
	}
	if got := m.reads - reads; got != 3 {
		t.Errorf("one block changed: %d nodes read, want 3", got)
	}
	if changed.RunsSinceRewrite != 1 || root.RunsSinceRewrite != 0 {
		t.Errorf("runs since rewrite: %d, then %d", root.RunsSinceRewrite, changed.RunsSinceRewrite)
	}

	// What is set to what it was leaves the very same root, and so do zeros where zeros are.
	written = len(m.nodes)
	b, _ = NewBuilder(&changed, blocks, blocks, m, m)
	if err := b.Set(ctx, Span{First: fan*fan + 3, Count: 1, Loc: format.Location{Run: ident.RunID{2}}}); err != nil {
		t.Fatal(err)
	}
	same, err := b.Finish(ctx)
	if err != nil || same.Node != changed.Node || len(m.nodes) != written {
		t.Errorf("nothing changed: root %v, want %v; %d nodes written; %v", same.Node, changed.Node, len(m.nodes)-written, err)
	}
}

func TestZeroingATerabyteTouchesOnlyItsEdges(t *testing.T) {
	ctx := context.Background()
	const blocks = 16 << 40 >> 16
	m := newMemory()
	b, _ := NewBuilder(nil, 0, blocks, m, m)
	for n := int64(0); n < 1000; n++ {
		if err := b.Set(ctx, Span{First: n * (blocks / 1000), Count: 1, Loc: format.Location{Run: ident.RunID{1}, Ordinal: uint32(n)}}); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	reads := m.reads
	b, _ = NewBuilder(&root, blocks, blocks, m, m)
	if err := b.Set(ctx, Span{First: 12345, Count: blocks - 54321, Zero: true}); err != nil {
		t.Fatal(err)
	}
	if root, err = b.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if got := m.reads - reads; got > 12 {
		t.Errorf("%d nodes read to zero most of the disk", got)
	}
	left := 0
	for s, err := range NewReader(root, blocks, m).Spans(ctx, 0, blocks) {
		if err != nil {
			t.Fatal(err)
		}
		if !s.Zero {
			left++
		}
	}
	if left != 1 {
		t.Errorf("%d blocks are left, want the first alone", left)
	}
}

func TestWrongUseAndLostNodesAreErrors(t *testing.T) {
	ctx := context.Background()
	m := newMemory()
	if _, err := NewBuilder(&format.MapRoot{}, 100, 50, m, m); err == nil {
		t.Error("a disk that shrank is accepted")
	}
	b, _ := NewBuilder(nil, 0, 100, m, m)
	for _, s := range []Span{{First: 10, Count: 0}, {First: -1, Count: 5, Zero: true}, {First: 90, Count: 11}} {
		if err := b.Set(ctx, s); err == nil {
			t.Errorf("span %+v is accepted", s)
		}
	}
	if err := b.Set(ctx, Span{First: 50, Count: 10, Loc: format.Location{Run: ident.RunID{1}}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Set(ctx, Span{First: 55, Count: 10, Zero: true}); err == nil {
		t.Error("spans that overlap are accepted")
	}
	m.fail = errors.New("store is full")
	if _, err := b.Finish(ctx); !errors.Is(err, m.fail) {
		t.Errorf("got %v", err)
	}
	lost := format.MapRoot{Levels: 1, Node: format.NodeRef{Run: ident.RunID{7}}}
	for _, err := range NewReader(lost, 100, m).Spans(ctx, 0, 100) {
		if err == nil {
			t.Error("a lost node is not noticed")
		}
	}
	for _, err := range NewReader(format.MapRoot{}, 100, m).Spans(ctx, 50, 51) {
		if err == nil {
			t.Error("a range beyond the disk is accepted")
		}
	}
}

func BenchmarkFullMapOfATerabyte(b *testing.B) {
	ctx := context.Background()
	const blocks = 1 << 40 >> 16
	for b.Loop() {
		m := newMemory()
		builder, _ := NewBuilder(nil, 0, blocks, m, m)
		for n := int64(0); n < blocks; n += 256 {
			if err := builder.Set(ctx, Span{First: n, Count: 256, Loc: format.Location{Run: ident.RunID{1}, Pack: uint32(n / 256)}}); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := builder.Finish(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
