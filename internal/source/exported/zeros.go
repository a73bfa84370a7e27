package exported

import (
	"context"

	"github.com/qbackup/qbackup/internal/extent"
)

// zeroTeller says where an export reads as zero; *nbd.Client is one.
type zeroTeller interface {
	Zeros(ctx context.Context, off, n int64) extent.Seq
}

// describe says for each range where it is zero.
//
// QEMU looks for data in the scratch image first, and then in the disk below it. A
// guest that discards a cluster between the two looks has its old data copied in
// between, and the disk then shows zeros that are newer than the point in time. So
// QEMU is asked twice, one after the other: what was copied before the first answer
// came is seen as data by the second. Only what is zero in both was zero.
func describe(ctx context.Context, client zeroTeller, ranges extent.Seq) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for w, err := range windows(ranges) {
			if err != nil {
				yield(extent.Extent{}, err)
				return
			}
			for e, err := range w.describe(ctx, client) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// window is some ranges near each other.
type window []extent.Extent

func (w window) span() (off, n int64) {
	return w[0].Off, w[len(w)-1].End() - w[0].Off
}

func (w window) describe(ctx context.Context, client zeroTeller) extent.Seq {
	off, n := w.span()
	first, err := extent.Collect(zeros(client.Zeros(ctx, off, n)))
	if err != nil {
		return failed(err)
	}
	second, err := extent.Collect(client.Zeros(ctx, off, n))
	if err != nil {
		return failed(err)
	}
	// Intersect takes Zero from its second stream.
	certain, err := extent.Collect(zeros(extent.Intersect(extent.Of(first...), extent.Of(second...))))
	if err != nil {
		return failed(err)
	}
	return mark(w, certain)
}

func failed(err error) extent.Seq {
	return func(yield func(extent.Extent, error) bool) { yield(extent.Extent{}, err) }
}

// zeros keeps what is marked as zero.
func zeros(seq extent.Seq) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for e, err := range seq {
			if (err != nil || e.Zero) && !yield(e, err) {
				return
			}
		}
	}
}

// mark splits ranges at the borders of zero ranges, and marks what lies in them.
// Both ascend.
func mark(ranges, zero []extent.Extent) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		zero := zero
		for _, r := range ranges {
			for at := r.Off; at < r.End(); {
				for len(zero) > 0 && zero[0].End() <= at {
					zero = zero[1:]
				}
				e := extent.Extent{Off: at, Len: r.End() - at}
				switch {
				case len(zero) > 0 && zero[0].Off <= at:
					e.Zero, e.Len = true, min(r.End(), zero[0].End())-at
				case len(zero) > 0 && zero[0].Off < r.End():
					e.Len = zero[0].Off - at
				}
				if !yield(e, nil) {
					return
				}
				at = e.End()
			}
		}
	}
}

// windows gathers ranges, and cuts those that are too long, so that what is asked
// for at once is bounded.
func windows(ranges extent.Seq) func(func(window, error) bool) {
	return func(yield func(window, error) bool) {
		var w window
		for r, err := range ranges {
			if err != nil {
				yield(nil, err)
				return
			}
			for r.Len > 0 {
				if len(w) == windowExtents || len(w) > 0 && r.Off >= w[0].Off+windowBytes {
					if !yield(w, nil) {
						return
					}
					w = nil
				}
				start := r.Off
				if len(w) > 0 {
					start = w[0].Off
				}
				piece := extent.Extent{Off: r.Off, Len: min(r.End(), start+windowBytes) - r.Off}
				w = append(w, piece)
				r.Off, r.Len = piece.End(), r.End()-piece.End()
			}
		}
		if len(w) > 0 {
			yield(w, nil)
		}
	}
}
