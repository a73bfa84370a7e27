package exported

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
)

// answers is an export whose zero ranges change between one question and the next, as
// when a guest discards.
type answers struct {
	asked int
	zero  [][]extent.Extent // what each question finds; the last for all later ones
	err   error             // of the question after them
	most  int64             // the longest range asked for
}

func (a *answers) Zeros(_ context.Context, off, n int64) extent.Seq {
	a.most = max(a.most, n)
	zero := a.zero[min(a.asked, len(a.zero)-1)]
	if a.err != nil && a.asked >= len(a.zero) {
		return failed(a.err)
	}
	a.asked++
	return mark([]extent.Extent{{Off: off, Len: n}}, zero)
}

func described(t *testing.T, a *answers, ranges ...extent.Extent) []extent.Extent {
	t.Helper()
	all, err := extent.Collect(describe(t.Context(), a, extent.Of(ranges...)))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestOnlyWhatIsZeroTwiceWasZero(t *testing.T) {
	// The first question races with a discard of [4,8): it has been copied before
	// the second.
	a := &answers{zero: [][]extent.Extent{
		{{Off: 0, Len: 8, Zero: true}, {Off: 12, Len: 4, Zero: true}},
		{{Off: 0, Len: 4, Zero: true}, {Off: 10, Len: 4, Zero: true}},
	}}
	got := described(t, a, extent.Extent{Off: 2, Len: 14})
	want := []extent.Extent{{Off: 2, Len: 2, Zero: true}, {Off: 4, Len: 8}, {Off: 12, Len: 2, Zero: true}, {Off: 14, Len: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRangesAreDescribedWithoutGapsAndWithinBounds(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var zero, ranges []extent.Extent
		for at := int64(0); at < 64*windowBytes; {
			n := 1 + random.Int64N(1<<(10+random.IntN(24)))
			if random.IntN(2) == 0 {
				zero = append(zero, extent.Extent{Off: at, Len: n, Zero: true})
			}
			at += n
		}
		zero = zero[:min(len(zero), 300)]
		for at := random.Int64N(1000); at < 20*windowBytes && len(ranges) < 3*windowExtents; {
			n := 1 + random.Int64N(1<<(4+random.IntN(30)))
			ranges = append(ranges, extent.Extent{Off: at, Len: n})
			at += n + 1 + random.Int64N(1<<(4+random.IntN(28)))
		}
		a := &answers{zero: [][]extent.Extent{zero}}
		got := described(t, a, ranges...)
		if a.most > windowBytes {
			t.Fatalf("asked for %d bytes at once", a.most)
		}
		// Marks aside, the ranges are the same; and what is marked is what is zero.
		plain := slices.Clone(got)
		for i := range plain {
			plain[i].Zero = false
		}
		if joined, _ := extent.Collect(extent.Union(extent.Of(plain...))); !slices.Equal(joined, ranges) {
			t.Fatal("ranges were lost or added")
		}
		is, _ := extent.Total(zeros(extent.Of(got...)))
		want, _ := extent.Total(extent.Intersect(extent.Of(ranges...), extent.Of(zero...)))
		if is != want {
			t.Fatalf("%d bytes are marked, %d are zero", is, want)
		}
	}
}

func TestManySmallRangesAreAskedForTogether(t *testing.T) {
	var ranges []extent.Extent
	for i := range int64(2*windowExtents + 1) {
		ranges = append(ranges, extent.Extent{Off: 2 * i, Len: 1})
	}
	a := &answers{zero: [][]extent.Extent{nil}}
	if got := described(t, a, ranges...); !slices.Equal(got, ranges) || a.asked != 6 {
		t.Errorf("%d ranges, %d questions", len(got), a.asked)
	}
}

func TestAnErrorEndsTheDescription(t *testing.T) {
	broken := errors.New("broken")
	for asked := range 2 {
		a := &answers{zero: make([][]extent.Extent, asked+1), err: broken}
		a.asked = 1
		if _, err := extent.Collect(describe(t.Context(), a, extent.Of(extent.Extent{Len: 8}, extent.Extent{Off: 10 * windowBytes, Len: 8}))); !errors.Is(err, broken) {
			t.Errorf("an error of the question: %v", err)
		}
	}
	if _, err := extent.Collect(describe(t.Context(), &answers{}, failed(broken))); !errors.Is(err, broken) {
		t.Errorf("an error of the ranges: %v", err)
	}
}
