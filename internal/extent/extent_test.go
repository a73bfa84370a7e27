package extent_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"pgregory.net/rapid"
)

// universe is the size of the disk of the property tests: small enough that
// ranges often touch, overlap and meet the end.
const universe = 96

// Values of the byte-by-byte reference.
const (
	absent = iota
	data
	zero
)

// drawSeq draws a stream, among them uncoalesced ones and ones with empty
// ranges.
func drawSeq(t *rapid.T, label string) []extent.Extent {
	var out []extent.Extent
	off := int64(0)
	for range rapid.IntRange(0, 8).Draw(t, label+" ranges") {
		off += rapid.Int64Range(0, 12).Draw(t, label+" gap")
		n := rapid.Int64Range(0, 14).Draw(t, label+" length")
		if off+n > universe {
			break
		}
		out = append(out, extent.Extent{Off: off, Len: n, Zero: rapid.Bool().Draw(t, label+" zero")})
		off += n
	}
	return out
}

// paint makes the reference of a stream.
func paint(extents []extent.Extent) (disk [universe]byte) {
	for _, e := range extents {
		for i := e.Off; i < e.End(); i++ {
			disk[i] = data
			if e.Zero {
				disk[i] = zero
			}
		}
	}
	return disk
}

// ranges reads the coalesced stream back from a reference of size bytes.
func ranges(disk []byte) []extent.Extent {
	var out []extent.Extent
	for i, v := range disk {
		if v == absent {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End() == int64(i) && out[n-1].Zero == (v == zero) {
			out[n-1].Len++
			continue
		}
		out = append(out, extent.Extent{Off: int64(i), Len: 1, Zero: v == zero})
	}
	return out
}

func requireEqual(t *rapid.T, seq extent.Seq, want []extent.Extent) {
	t.Helper()
	got, err := extent.Collect(seq)
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
	// Leaving early at any place gives a prefix, and then nothing more.
	stop := rapid.IntRange(0, len(want)).Draw(t, "stop")
	var prefix []extent.Extent
	for e := range seq {
		if len(prefix) == stop {
			break
		}
		prefix = append(prefix, e)
	}
	if !slices.Equal(prefix, want[:stop]) {
		t.Fatalf("prefix of %d: got %v, want %v", stop, prefix, want[:stop])
	}
}

func TestUnionEqualsTheByteByByteReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var seqs []extent.Seq
		var want [universe]byte
		for i := range rapid.IntRange(0, 4).Draw(t, "streams") {
			in := drawSeq(t, fmt.Sprintf("s%d", i))
			seqs = append(seqs, extent.Of(in...))
			for j, v := range paint(in) {
				if v != absent {
					want[j] = data
				}
			}
		}
		requireEqual(t, extent.Union(seqs...), ranges(want[:]))
	})
}

func TestIntersectEqualsTheByteByByteReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSeq(t, "a"), drawSeq(t, "b")
		want, inA := paint(b), paint(a)
		for i := range want {
			if inA[i] == absent {
				want[i] = absent
			}
		}
		requireEqual(t, extent.Intersect(extent.Of(a...), extent.Of(b...)), ranges(want[:]))
	})
}

func TestSubtractEqualsTheByteByByteReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSeq(t, "a"), drawSeq(t, "b")
		want, inB := paint(a), paint(b)
		for i := range want {
			if inB[i] != absent {
				want[i] = absent
			}
		}
		requireEqual(t, extent.Subtract(extent.Of(a...), extent.Of(b...)), ranges(want[:]))
	})
}

func TestAlignEqualsTheByteByByteReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawSeq(t, "in")
		unit := rapid.Int64Range(1, 20).Draw(t, "unit")
		size := rapid.Int64Range(0, universe).Draw(t, "size")
		want := make([]byte, size)
		disk := paint(in)
		for i := range want {
			unitStart := int64(i) - int64(i)%unit
			for j := unitStart; j < min(unitStart+unit, universe); j++ {
				if disk[j] != absent {
					want[i] = data
				}
			}
		}
		requireEqual(t, extent.Align(extent.Of(in...), unit, size), ranges(want))
	})
}

func TestSplitCutsAtWindowsAndKeepsEveryByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawSeq(t, "in")
		window := rapid.Int64Range(1, 20).Draw(t, "window")
		got, err := extent.Collect(extent.Split(extent.Of(in...), window))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got {
			if e.Len <= 0 || e.Off/window != (e.End()-1)/window {
				t.Fatalf("%v crosses a multiple of %d", e, window)
			}
		}
		if paint(got) != paint(in) {
			t.Fatalf("bytes changed: %v became %v", in, got)
		}
		total, err := extent.Total(extent.Of(in...))
		sum := int64(0)
		for _, e := range got {
			sum += e.Len
		}
		if err != nil || total != sum {
			t.Fatalf("total %d (%v), sum of the pieces %d", total, err, sum)
		}
	})
}

var errBroken = errors.New("broken source")

// failing streams extents and then fails; it reports a second error if it is
// asked for more after that.
func failing(extents ...extent.Extent) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for _, e := range extents {
			if !yield(e, nil) {
				return
			}
		}
		if yield(extent.Extent{}, errBroken) {
			panic("asked for more after an error")
		}
	}
}

// operations are all operations applied to a stream under test and a
// well-behaved one that covers the disk.
func operations(seq extent.Seq) map[string]extent.Seq {
	all := extent.Of(extent.Extent{Off: 0, Len: 1000})
	beyond := extent.Of(extent.Extent{Off: 900, Len: 100})
	return map[string]extent.Seq{
		"union first":      extent.Union(seq, all),
		"union second":     extent.Union(all, seq),
		"intersect first":  extent.Intersect(seq, all),
		"intersect second": extent.Intersect(all, seq),
		"subtract first":   extent.Subtract(seq, beyond),
		"subtract second":  extent.Subtract(all, seq),
		"align":            extent.Align(seq, 8, 1000),
		"split":            extent.Split(seq, 8),
	}
}

func TestAnErrorPassesThroughAndEndsEveryOperation(t *testing.T) {
	for name, seq := range operations(failing(extent.Extent{Off: 8, Len: 8}, extent.Extent{Off: 32, Len: 8})) {
		t.Run(name, func(t *testing.T) {
			failed := false
			for _, err := range seq {
				if failed {
					t.Fatal("something came after the error")
				}
				failed = err != nil
				if failed && !errors.Is(err, errBroken) {
					t.Fatalf("another error: %v", err)
				}
			}
			if !failed {
				t.Fatal("the error was lost")
			}
			if _, err := extent.Total(seq); !errors.Is(err, errBroken) {
				t.Fatalf("Total returned %v", err)
			}
		})
	}
}

func TestWhatComesBeforeAnErrorIsRight(t *testing.T) {
	got, err := extent.Collect(extent.Align(failing(extent.Extent{Off: 9, Len: 1}), 8, 1000))
	if !errors.Is(err, errBroken) || !slices.Equal(got, []extent.Extent{{Off: 8, Len: 8}}) {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestABrokenPromiseOfAStreamIsAnError(t *testing.T) {
	cases := map[string]struct {
		in   []extent.Extent
		want error
	}{
		"overlap":         {[]extent.Extent{{Off: 0, Len: 10}, {Off: 9, Len: 5}}, extent.ErrOrder},
		"step back":       {[]extent.Extent{{Off: 20, Len: 5}, {Off: 10, Len: 5}}, extent.ErrOrder},
		"negative offset": {[]extent.Extent{{Off: -1, Len: 5}}, extent.ErrRange},
		"negative length": {[]extent.Extent{{Off: 10, Len: -5}}, extent.ErrRange},
		"overflow":        {[]extent.Extent{{Off: math.MaxInt64 - 1, Len: 2}}, extent.ErrRange},
	}
	for name, c := range cases {
		for op, seq := range operations(extent.Of(c.in...)) {
			if _, err := extent.Collect(seq); !errors.Is(err, c.want) {
				t.Errorf("%s, %s: got %v, want %v", name, op, err, c.want)
			}
		}
	}
}

func TestLargeOffsetsDoNotOverflow(t *testing.T) {
	const top = math.MaxInt64
	last := extent.Extent{Off: top - 1, Len: 1}
	got, err := extent.Collect(extent.Align(extent.Of(last), 1<<40, top))
	want := []extent.Extent{{Off: top - top%(1<<40), Len: top % (1 << 40)}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("align: got %v (%v), want %v", got, err, want)
	}
	got, err = extent.Collect(extent.Split(extent.Of(extent.Extent{Off: 0, Len: top}), 1<<62))
	want = []extent.Extent{{Off: 0, Len: 1 << 62}, {Off: 1 << 62, Len: top - 1<<62}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("split: got %v (%v), want %v", got, err, want)
	}
}

func TestLeavingEarlyStopsEveryInput(t *testing.T) {
	released := 0
	endless := func(yield func(extent.Extent, error) bool) {
		defer func() { released++ }()
		for off := int64(0); yield(extent.Extent{Off: off, Len: 4}, nil); off += 64 {
		}
	}
	for name, seq := range operations(endless) {
		released = 0
		for range seq {
			break
		}
		if released != 1 {
			t.Errorf("%s: input released %d times", name, released)
		}
	}
}

func TestAMeaninglessUnitPanics(t *testing.T) {
	for name, call := range map[string]func(){
		"align unit":   func() { extent.Align(extent.Of(), 0, 10) },
		"align size":   func() { extent.Align(extent.Of(), 1, -1) },
		"split window": func() { extent.Split(extent.Of(), 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}

func BenchmarkUnionOfTwo(b *testing.B) {
	stream := func(shift int64) extent.Seq {
		return func(yield func(extent.Extent, error) bool) {
			for i := range int64(b.N) {
				if !yield(extent.Extent{Off: i*16 + shift, Len: 4}, nil) {
					return
				}
			}
		}
	}
	if _, err := extent.Total(extent.Union(stream(0), stream(8))); err != nil {
		b.Fatal(err)
	}
}
