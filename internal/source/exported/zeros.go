package exported

import (
	"context"

	"github.com/qbackup/qbackup/internal/extent"
)

// zeroTeller says where an export reads as zero; *nbd.Client is one.
type zeroTeller interface {
	Zeros(ctx context.Context, off, n int64) extent.Seq
}

// describe says for each range where it is zero. A short one counts as data: whoever
// reads it sees what it is.
//
// QEMU looks for data in the scratch image first, and then in the disk below it. A
// guest that discards a cluster between the two looks has its old data copied in
// between, and the disk then shows zeros that are newer than the point in time. So
// QEMU is asked twice, one after the other: what was copied before the first answer
// came is seen as data by the second. Only what is zero in both was zero.
func describe(ctx context.Context, client zeroTeller, ranges extent.Seq) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for r, err := range ranges {
			if err != nil || r.Len < worthAsking {
				if !yield(r, err) || err != nil {
					return
				}
				continue
			}
			for off := r.Off; off < r.End(); off += windowBytes {
				part := extent.Extent{Off: off, Len: min(windowBytes, r.End()-off)}
				for e, err := range describePart(ctx, client, part) {
					if !yield(e, err) || err != nil {
						return
					}
				}
			}
		}
	}
}

func describePart(ctx context.Context, client zeroTeller, part extent.Extent) extent.Seq {
	first, err := extent.Collect(zeros(client.Zeros(ctx, part.Off, part.Len)))
	if err != nil {
		return failed(err)
	}
	if len(first) == 0 {
		return extent.Of(part)
	}
	second, err := extent.Collect(client.Zeros(ctx, part.Off, part.Len))
	if err != nil {
		return failed(err)
	}
	// Intersect takes Zero from its second stream.
	certain, err := extent.Collect(zeros(extent.Intersect(extent.Of(first...), extent.Of(second...))))
	if err != nil {
		return failed(err)
	}
	return mark(part, certain)
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

// mark splits a range at the borders of the zero ranges inside it.
func mark(part extent.Extent, zero []extent.Extent) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		at := part.Off
		for _, z := range zero {
			if z.Off > at && !yield(extent.Extent{Off: at, Len: z.Off - at}, nil) {
				return
			}
			if !yield(z, nil) {
				return
			}
			at = z.End()
		}
		if at < part.End() {
			yield(extent.Extent{Off: at, Len: part.End() - at}, nil)
		}
	}
}
