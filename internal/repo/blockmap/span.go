package blockmap

import (
	"context"
	"iter"

	"github.com/qbackup/qbackup/internal/repo/format"
)

// Span says of neighbouring blocks where they lie: the block First+i is the one of ordinal Loc.Ordinal+i in Loc's pack.
// Or that all of them are zero; Loc means nothing then.
type Span struct {
	First, Count int64
	Zero         bool
	Loc          format.Location
}

// End is the first block after the span.
func (s Span) End() int64 { return s.First + s.Count }

// continuedBy tells whether next carries on where s ends, so that both are one span.
func (s Span) continuedBy(next Span) bool {
	if s.End() != next.First || s.Zero != next.Zero {
		return false
	}
	return s.Zero || s.Loc.Run == next.Loc.Run && s.Loc.Pack == next.Loc.Pack && int64(s.Loc.Ordinal)+s.Count == int64(next.Loc.Ordinal)
}

// Clip is the part of s within [first, end), which must not be empty.
func (s Span) Clip(first, end int64) Span {
	if skip := first - s.First; skip > 0 {
		s.First += skip
		s.Count -= skip
		if !s.Zero {
			s.Loc.Ordinal += uint32(skip)
		}
	}
	s.Count = min(s.Count, end-s.First)
	return s
}

// Source gives the node that a reference names, checked against the reference's hash. It may be asked in parallel and
// is expected to keep recent nodes at hand. The node must not be changed.
type Source interface {
	Node(ctx context.Context, ref format.NodeRef) (*format.Node, error)
}

// Sink keeps the bytes of a new node and says where. It must not keep the slice.
type Sink interface {
	PutNode(ctx context.Context, node []byte) (format.NodeRef, error)
}

// merged joins spans that carry on where the one before ends.
func merged(seq iter.Seq2[Span, error]) iter.Seq2[Span, error] {
	return func(yield func(Span, error) bool) {
		var held Span
		for s, err := range seq {
			if err != nil {
				yield(Span{}, err)
				return
			}
			if held.Count > 0 && held.continuedBy(s) {
				held.Count += s.Count
				continue
			}
			if held.Count > 0 && !yield(held, nil) {
				return
			}
			held = s
		}
		if held.Count > 0 {
			yield(held, nil)
		}
	}
}
