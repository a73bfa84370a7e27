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
	whole := extent.Extent{Off: off, Len: n}
	inside, _ := extent.Collect(zeros(extent.Intersect(extent.Of(whole), extent.Of(zero...))))
	return mark(whole, inside)
}

func described(t *testing.T, a *answers, ranges ...extent.Extent) []extent.Extent {
	t.Helper()
	all, err := extent.Collect(describe(t.Context(), a, extent.Of(ranges...)))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const mega = worthAsking

func TestOnlyWhatIsZeroTwiceWasZero(t *testing.T) {
	// The first question races with a discard of [4,8): it has been copied before
	// the second.
	a := &answers{zero: [][]extent.Extent{
		{{Off: 0, Len: 8 * mega, Zero: true}, {Off: 12 * mega, Len: 4 * mega, Zero: true}},
		{{Off: 0, Len: 4 * mega, Zero: true}, {Off: 10 * mega, Len: 4 * mega, Zero: true}},
	}}
	got := described(t, a, extent.Extent{Off: 2 * mega, Len: 14 * mega})
	want := []extent.Extent{
		{Off: 2 * mega, Len: 2 * mega, Zero: true}, {Off: 4 * mega, Len: 8 * mega}, {Off: 12 * mega, Len: 2 * mega, Zero: true}, {Off: 14 * mega, Len: 2 * mega},
	}
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
			at += n + 1
		}
		zero = zero[:min(len(zero), 300)]
		var long []extent.Extent // those that are asked about
		for at := random.Int64N(1000); at < 20*windowBytes && len(ranges) < 3000; {
			n := 1 + random.Int64N(1<<(4+random.IntN(30)))
			ranges = append(ranges, extent.Extent{Off: at, Len: n})
			if n >= worthAsking {
				long = append(long, ranges[len(ranges)-1])
			}
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
		want, _ := extent.Total(extent.Intersect(extent.Of(long...), extent.Of(zero...)))
		if is != want {
			t.Fatalf("%d bytes are marked, %d are zero", is, want)
		}
	}
}

func TestNobodyIsAskedAboutShortRanges(t *testing.T) {
	a := &answers{zero: [][]extent.Extent{{{Len: 100 * mega, Zero: true}}}}
	ranges := []extent.Extent{{Off: 0, Len: mega - 1}, {Off: 2 * mega, Len: 1}}
	if got := described(t, a, ranges...); !slices.Equal(got, ranges) || a.asked != 0 {
		t.Errorf("got %v after %d questions", got, a.asked)
	}
}

func TestWhatHasNoZerosIsAskedAboutOnce(t *testing.T) {
	a := &answers{zero: [][]extent.Extent{nil}}
	if got := described(t, a, extent.Extent{Len: mega}); !slices.Equal(got, []extent.Extent{{Len: mega}}) || a.asked != 1 {
		t.Errorf("got %v after %d questions", got, a.asked)
	}
}

func TestAnErrorEndsTheDescription(t *testing.T) {
	broken := errors.New("broken")
	for asked := range 2 {
		a := &answers{zero: [][]extent.Extent{{{Len: mega, Zero: true}}}, err: broken}
		a.asked = asked
		if _, err := extent.Collect(describe(t.Context(), a, extent.Of(extent.Extent{Len: mega}, extent.Extent{Off: 10 * windowBytes, Len: mega}))); !errors.Is(err, broken) {
			t.Errorf("an error of the question: %v", err)
		}
	}
	if _, err := extent.Collect(describe(t.Context(), &answers{}, failed(broken))); !errors.Is(err, broken) {
		t.Errorf("an error of the ranges: %v", err)
	}
}
