package extent

import (
	"errors"
	"fmt"
	"iter"
	"math"
)

var (
	// ErrRange is reported for a range with a negative offset or length, or
	// whose end does not fit an int64.
	ErrRange = errors.New("not a range of a disk")
	// ErrOrder is reported for a stream that steps back or overlaps itself.
	ErrOrder = errors.New("ranges out of order")
)

// Extent is the half-open range [Off, Off+Len) of bytes of a disk.
type Extent struct {
	Off, Len int64
	// Zero says that every byte of the range is known to read as zero.
	// False says nothing about the bytes.
	Zero bool
}

// End returns the offset of the first byte after the range.
func (e Extent) End() int64 { return e.Off + e.Len }

// String shows the range as [off,end), with a z when it is known to be zero.
func (e Extent) String() string {
	mark := ""
	if e.Zero {
		mark = "z"
	}
	return fmt.Sprintf("[%d,%d)%s", e.Off, e.End(), mark)
}

// Seq is an ascending, non-overlapping stream of extents. A non-nil error ends
// it; the extent beside an error means nothing.
type Seq = iter.Seq2[Extent, error]

// Of streams the given extents, which must already be in order.
func Of(extents ...Extent) Seq {
	return func(yield func(Extent, error) bool) {
		for _, e := range extents {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Collect reads the whole stream into memory. With an error it returns what
// came before it.
func Collect(seq Seq) ([]Extent, error) {
	var all []Extent
	for e, err := range checked(seq) {
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	return all, nil
}

// Total returns the number of bytes in the stream. With an error it returns
// the bytes that came before it.
func Total(seq Seq) (int64, error) {
	var total int64
	for e, err := range checked(seq) {
		if err != nil {
			return total, err
		}
		total += e.Len
	}
	return total, nil
}

// checked passes seq on without its empty ranges, and turns a broken promise
// of the stream into an error. It also makes sure that an error is the last
// thing that comes.
func checked(seq Seq) Seq {
	return func(yield func(Extent, error) bool) {
		var end int64
		for e, err := range seq {
			if err == nil {
				err = check(e, end)
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
			end = e.End()
			if e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// check tells whether e is a range, and one that may follow a range that
// ended at end.
func check(e Extent, end int64) error {
	if e.Off < 0 || e.Len < 0 || e.Off > math.MaxInt64-e.Len {
		return fmt.Errorf("offset %d, length %d: %w", e.Off, e.Len, ErrRange)
	}
	if e.Off < end {
		return fmt.Errorf("%v after a range that ended at %d: %w", e, end, ErrOrder)
	}
	return nil
}
