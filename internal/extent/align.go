package extent

import "fmt"

// Align grows every range outwards to multiples of unit and clips the result
// to [0, size), so that only the last range may end off a multiple. Ranges
// that then overlap or touch are merged. Zero is dropped, because the bytes
// that a range grows by were not vouched for.
//
// It panics when unit is not positive or size is negative.
func Align(seq Seq, unit, size int64) Seq {
	if unit <= 0 || size < 0 {
		panic(fmt.Sprintf("extent: align to %d within %d bytes", unit, size))
	}
	return func(yield func(Extent, error) bool) {
		out := joiner{yield: yield}
		var done int64 // all below it has been decided
		for e, err := range checked(seq) {
			if err != nil {
				out.finish(err)
				return
			}
			off := max(e.Off-e.Off%unit, done)
			end := roundUp(min(e.End(), size), unit, size)
			if off >= end {
				continue
			}
			done = end
			if !out.add(Extent{Off: off, Len: end - off}) {
				return
			}
		}
		out.finish(nil)
	}
}

// roundUp rounds n up to a multiple of unit, but not above limit. n is at most
// limit. It does not overflow.
func roundUp(n, unit, limit int64) int64 {
	rest := n % unit
	if rest == 0 {
		return n
	}
	return n + min(unit-rest, limit-n)
}

// Split cuts every range at the multiples of window, so that no range of the
// result crosses one. Zero is kept, and nothing is merged.
//
// It panics when window is not positive.
func Split(seq Seq, window int64) Seq {
	if window <= 0 {
		panic(fmt.Sprintf("extent: split at multiples of %d", window))
	}
	return func(yield func(Extent, error) bool) {
		for e, err := range checked(seq) {
			if err != nil {
				yield(Extent{}, err)
				return
			}
			for e.Len > 0 {
				n := min(e.Len, window-e.Off%window)
				if !yield(Extent{Off: e.Off, Len: n, Zero: e.Zero}, nil) {
					return
				}
				e.Off += n
				e.Len -= n
			}
		}
	}
}
