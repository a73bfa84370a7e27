package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// flatMap is a map that is a slice: per block the location, nil for zero.
type flatMap []*format.Location

func (m flatMap) Spans(_ context.Context, first, count int64) iter.Seq2[blockmap.Span, error] {
	return func(yield func(blockmap.Span, error) bool) {
		for at := first; at < first+count; {
			span := blockmap.Span{First: at, Count: 1, Zero: m[at] == nil}
			if !span.Zero {
				span.Loc = *m[at]
			}
			for next := span.End(); next < first+count && continues(span, m[next]); next++ {
				span.Count++
			}
			if !yield(span, nil) {
				return
			}
			at = span.End()
		}
	}
}

func (m flatMap) LastData(_ context.Context, before int64) (blockmap.Span, bool, error) {
	for n := before - 1; n >= 0; n-- {
		if m[n] != nil {
			return blockmap.Span{First: n, Count: 1, Loc: *m[n]}, true, nil
		}
	}
	return blockmap.Span{}, false, nil
}

func continues(s blockmap.Span, loc *format.Location) bool {
	if s.Zero || loc == nil {
		return s.Zero && loc == nil
	}
	want := s.Loc
	want.Ordinal += uint32(s.Count)
	return *loc == want
}

// flatHashes knows the content at every location by its ordinal.
type flatHashes map[format.Location]format.BlockHash

func (h flatHashes) BlockHash(_ context.Context, loc format.Location) (format.BlockHash, bool, error) {
	hash, known := h[loc]
	return hash, known, nil
}

// blockWorld is a disk of small blocks and a point of it.
type blockWorld struct {
	content []byte
	old     flatMap
	hashes  flatHashes
}

const worldBlock = 16

func worldSum(b []byte) (h format.BlockHash) {
	copy(h[:], b)
	return h
}

// newBlockWorld stores every block whose number is in data; the others are zero.
func newBlockWorld(blocks int, run byte, data ...int) *blockWorld {
	w := &blockWorld{content: make([]byte, blocks*worldBlock), old: make(flatMap, blocks), hashes: flatHashes{}}
	for _, n := range data {
		copy(w.content[n*worldBlock:], fmt.Sprintf("run %d block %03d", run, n))
		loc := format.Location{Run: runN(run), Ordinal: uint32(n)}
		w.old[n] = &loc
		w.hashes[loc] = worldSum(w.content[n*worldBlock : (n+1)*worldBlock])
	}
	return w
}

func (w *blockWorld) sampler() *sampler {
	return &sampler{
		disk: bytes.NewReader(w.content), sizeBytes: int64(len(w.content)), blockBytes: worldBlock, old: w.old, blocks: int64(len(w.old)),
		hashes: w.hashes, sum: worldSum, random: rand.NewChaCha8([32]byte{1}),
	}
}

func blocksOf(probes []probe) []int {
	var list []int
	for _, p := range probes {
		list = append(list, int(p.block))
	}
	return list
}

func TestADrawFindsBlocksWithDataOnly(t *testing.T) {
	w := newBlockWorld(1000, 1, 3, 500, 501, 502, 990)
	probes, err := w.sampler().draw(t.Context(), 200)
	if err != nil {
		t.Fatal(err)
	}
	if got := blocksOf(probes); !slices.Equal(got, []int{3, 500, 501, 502, 990}) {
		t.Fatalf("drew %v", got)
	}
	for _, p := range probes {
		if p.span.Zero || p.span.Count != 1 || p.span.First != p.block || p.span.Loc.Ordinal != uint32(p.block) {
			t.Errorf("block %d has span %+v", p.block, p.span)
		}
	}
	for _, w := range []*blockWorld{newBlockWorld(1000, 1), newBlockWorld(0, 1)} {
		if probes, err := w.sampler().draw(t.Context(), 10); err != nil || len(probes) != 0 {
			t.Errorf("a disk of zeros gave %v, %v", probes, err)
		}
	}
	s := w.sampler()
	s.random = bytes.NewReader(nil)
	if _, err := s.draw(t.Context(), 1); err == nil {
		t.Error("a draw without randomness succeeded")
	}
}

func TestDirtyBlocksAreNotSampled(t *testing.T) {
	var probes []probe
	for n := range 10 {
		probes = append(probes, probe{block: int64(n)})
	}
	e := func(off, end int64) extent.Extent { return extent.Extent{Off: off, Len: end - off} }
	for _, c := range []struct {
		dirty []extent.Extent
		want  []int
	}{
		{nil, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
		{[]extent.Extent{e(0, 160)}, nil},
		{[]extent.Extent{e(16, 32)}, []int{0, 2, 3, 4, 5, 6, 7, 8, 9}},
		{[]extent.Extent{e(15, 17)}, []int{2, 3, 4, 5, 6, 7, 8, 9}},
		{[]extent.Extent{e(31, 32), e(32, 33), e(159, 160)}, []int{0, 3, 4, 5, 6, 7, 8}},
		{[]extent.Extent{e(0, 1), e(2, 3), e(1000, 2000)}, []int{1, 2, 3, 4, 5, 6, 7, 8, 9}},
	} {
		got, err := clean(slices.Clone(probes), extent.Of(c.dirty...), worldBlock)
		if err != nil || !slices.Equal(blocksOf(got), c.want) {
			t.Errorf("dirty %v leaves %v, %v; want %v", c.dirty, blocksOf(got), err, c.want)
		}
	}
	broken := errors.New("broken")
	if _, err := clean(probes, func(yield func(extent.Extent, error) bool) { yield(extent.Extent{}, broken) }, worldBlock); !errors.Is(err, broken) {
		t.Errorf("a broken stream gave %v", err)
	}
}

func TestAComparisonCountsEqualUnknownAndDifferentBlocks(t *testing.T) {
	w := newBlockWorld(8, 1, 0, 1, 2, 3, 7)
	w.content = w.content[:7*worldBlock+5] // the last block is partial: padded with zeros
	clear(w.content[7*worldBlock:])
	w.hashes[*w.old[7]] = format.BlockHash{}
	delete(w.hashes, *w.old[1])
	w.content[2*worldBlock]++
	at := func(n int64) probe {
		for span := range w.old.Spans(t.Context(), n, 1) {
			return probe{n, span}
		}
		panic("no span")
	}
	s := w.sampler()
	s.sizeBytes = int64(len(w.content))
	equal, unknown, differs, err := s.compare(t.Context(), nil)
	if err != nil || equal+unknown != 0 || differs != nil {
		t.Fatalf("nothing compared gave %d, %d, %v, %v", equal, unknown, differs, err)
	}
	all := []probe{at(0), at(1), at(2), at(5), at(7)}
	equal, unknown, differs, err = s.compare(t.Context(), all)
	if err != nil || equal != 3 || unknown != 1 || differs == nil || differs.block != 2 {
		t.Fatalf("got %d equal, %d unknown, %+v differs, %v", equal, unknown, differs, err)
	}
	s.sizeBytes += worldBlock
	if _, _, _, err := s.compare(t.Context(), all[4:]); !errors.Is(err, io.EOF) {
		t.Fatalf("a short read gave %v", err)
	}
}

func TestSwappedDisksAreToldApartByCleanBlocksThatDiffer(t *testing.T) {
	// Two clones: equal but for blocks 4 (other content), 6 (zero in b) and 9
	// (zero in a). Blocks 0 to 2 are the same place, 3 the same content elsewhere.
	a, b := newBlockWorld(12, 1, 0, 1, 2, 3, 4, 6), newBlockWorld(12, 2, 3, 4, 9)
	for n := range 3 {
		b.old[n] = a.old[n]
	}
	b.hashes[*b.old[3]] = a.hashes[*a.old[3]]
	for loc, h := range b.hashes {
		a.hashes[loc] = h
	}
	for _, c := range []struct {
		dirty []extent.Extent
		want  []int
	}{
		{nil, []int{4, 6, 9}},
		{[]extent.Extent{{Off: 4 * worldBlock, Len: 1}}, []int{6, 9}},
		{[]extent.Extent{{Off: 0, Len: 7 * worldBlock}}, []int{9}},
		{[]extent.Extent{{Off: 0, Len: 12 * worldBlock}}, nil},
		{[]extent.Extent{{Off: 9*worldBlock + 15, Len: 1}}, []int{4, 6}},
	} {
		got, err := a.sampler().apart(t.Context(), b.old, 12, extent.Of(c.dirty...))
		if err != nil || !slices.Equal(blocksOf(got), c.want) {
			t.Errorf("dirty %v: %v, %v; want %v", c.dirty, blocksOf(got), err, c.want)
		}
	}
	// The probes say what a holds, so reading b in its place shows at once.
	s := a.sampler()
	probes, err := s.apart(t.Context(), b.old, 12, extent.Of())
	if err != nil {
		t.Fatal(err)
	}
	s.disk = bytes.NewReader(b.content)
	if equal, _, differs, err := s.compare(t.Context(), probes); err != nil || equal != 0 || differs == nil {
		t.Errorf("the other disk compares with %d equal, %v", equal, err)
	}
	s.disk = bytes.NewReader(a.content)
	if equal, _, differs, err := s.compare(t.Context(), probes); err != nil || equal != 3 || differs != nil {
		t.Errorf("the right disk compares with %d equal, %+v, %v", equal, differs, err)
	}
	if probes, err := a.sampler().apart(t.Context(), a.old, 12, extent.Of()); err != nil || len(probes) != 0 {
		t.Errorf("a disk differs from itself in %v, %v", blocksOf(probes), err)
	}
	if probes, err := a.sampler().apart(t.Context(), b.old[:5], 5, extent.Of()); err != nil || !slices.Equal(blocksOf(probes), []int{4}) {
		t.Errorf("a shorter disk: %v, %v", blocksOf(probes), err)
	}
}

func TestPairsOfMapsCoverEveryBlockThatDiffers(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	randomMap := func() flatMap {
		m := make(flatMap, 60)
		for n := range m {
			if random.IntN(3) > 0 {
				m[n] = &format.Location{Run: ident.RunID{byte(random.IntN(2))}, Ordinal: uint32(n)}
			}
		}
		return m
	}
	for range 500 {
		a, b := randomMap(), randomMap()
		blocks := int64(random.IntN(61))
		var got, want []int64
		for pair, err := range pairs(t.Context(), a, b, blocks) {
			if err != nil {
				t.Fatal(err)
			}
			for n := pair[0].First; n < pair[0].End(); n++ {
				x, y := pair[0].Clip(n, n+1), pair[1].Clip(n, n+1)
				if x.Zero != (a[n] == nil) || y.Zero != (b[n] == nil) || !x.Zero && x.Loc != *a[n] || !y.Zero && y.Loc != *b[n] {
					t.Fatalf("block %d: %+v, %+v", n, x, y)
				}
				got = append(got, n)
			}
		}
		for n := range blocks {
			x, y := a[n], b[n]
			if (x == nil) != (y == nil) || x != nil && *x != *y {
				want = append(want, n)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

func TestProbesAreKeptEvenly(t *testing.T) {
	var probes []probe
	for n := range 64 {
		probes = append(probes, probe{block: int64(n)})
	}
	if got := blocksOf(spread(probes, 4)); !slices.Equal(got, []int{0, 16, 32, 48}) {
		t.Errorf("kept %v", got)
	}
	if got := spread(probes[:3], 4); len(got) != 3 {
		t.Errorf("kept %d of 3", len(got))
	}
}

// recorder is a map under construction.
type recorder struct {
	spans []blockmap.Span
	end   int64
}

func (r *recorder) Set(_ context.Context, s blockmap.Span) error {
	if s.First < r.end || s.Count < 1 {
		return fmt.Errorf("span %+v after block %d", s, r.end)
	}
	r.end = s.End()
	r.spans = append(r.spans, s)
	return nil
}

func TestAMapThatIsWrittenAnewSaysTheSame(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		blocks := random.IntN(50)
		old := make(flatMap, blocks)
		for n := range old {
			if random.IntN(2) == 0 {
				old[n] = &format.Location{Run: runN(1), Ordinal: uint32(n)}
			}
		}
		grown := blocks + random.IntN(10)
		want := make(flatMap, grown)
		copy(want, old)
		out := &recorder{}
		o := &overlay{old: old, blocks: int64(blocks), out: out}
		for at := random.IntN(5); at < grown; at += random.IntN(8) {
			n := 1 + random.IntN(grown-at)%4
			span := blockmap.Span{First: int64(at), Count: int64(n), Zero: random.IntN(3) == 0}
			if !span.Zero {
				span.Loc = format.Location{Run: runN(2), Ordinal: uint32(at)}
			}
			if err := o.Set(t.Context(), span); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				want[at+i] = nil
				if !span.Zero {
					want[at+i] = &format.Location{Run: runN(2), Ordinal: uint32(at + i)}
				}
			}
			at += n
		}
		if err := o.finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := make(flatMap, grown)
		for _, s := range out.spans {
			for n := s.First; n < s.End() && !s.Zero; n++ {
				loc := s.Clip(n, n+1).Loc
				got[n] = &loc
			}
		}
		for n := range want {
			if (got[n] == nil) != (want[n] == nil) || got[n] != nil && *got[n] != *want[n] {
				t.Fatalf("block %d is %v, want %v", n, got[n], want[n])
			}
		}
	}
}
