package bitmapscan

import (
	"context"
	"encoding/binary"
	"math/bits"

	"github.com/qbackup/qbackup/internal/extent"
)

// Extents streams the dirty extents of the disk: ascending, merged where they
// touch, clipped to the size of the disk, none of them marked Zero. Each call
// of the stream reads the bitmap anew.
//
// Errors are *Error, or the error of ctx.
func (b *Bitmap) Extents(ctx context.Context) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		if err := b.Validate(); err != nil {
			yield(extent.Extent{}, err)
			return
		}
		r := newRuns(b, yield)
		for p, err := range b.pieces(ctx) {
			if err != nil {
				yield(extent.Extent{}, err)
				return
			}
			if !r.take(p) {
				return
			}
		}
		r.end(r.bits)
	}
}

// runs turns pieces into extents.
type runs struct {
	yield func(extent.Extent, error) bool
	start int64 // first bit of the run that is open, -1 if none is
	slots *[edgeSlots]uint32

	bits, sizeBytes int64
	granularityBits uint
}

func newRuns(b *Bitmap, yield func(extent.Extent, error) bool) runs {
	return runs{
		yield: yield,
		start: -1,
		bits:  ceilDiv(b.SizeBytes, b.GranularityBytes), sizeBytes: b.SizeBytes,
		granularityBits: uint(bits.TrailingZeros64(uint64(b.GranularityBytes))),
	}
}

// offset returns where on the disk a bit's bytes begin; for the number of bits
// it is the end of the disk.
func (r *runs) offset(bit int64) int64 {
	// Only the last bit's end can pass the end of the disk, or overflow.
	if bit >= r.bits {
		return r.sizeBytes
	}
	return bit << r.granularityBits
}

// take goes through one piece; false says that the consumer has left.
func (r *runs) take(p piece) bool {
	switch p.kind {
	case clean:
		return r.end(p.first)
	case dirty:
		r.begin(p.first)
		return true
	}
	if r.slots == nil {
		r.slots = new([edgeSlots]uint32)
	}
	for words, at := p.words, p.first; len(words) > 0; {
		part := words[:min(len(words), edgeBytes)]
		before := uint64(0)
		if r.start >= 0 {
			before = 1
		}
		n := edges(r.slots, part, before)
		if !r.pair(r.slots[:n], at) {
			return false
		}
		words = words[len(part):]
		at += int64(len(part)) * 8
	}
	return true
}

// pair takes edges, counted from bit at, two by two: the runs between them.
func (r *runs) pair(edges []uint32, at int64) bool {
	if r.start >= 0 && len(edges) > 0 {
		if !r.end(at + int64(edges[0])) {
			return false
		}
		edges = edges[1:]
	}
	for ; len(edges) >= 2; edges = edges[2:] {
		off := r.offset(at + int64(edges[0]))
		end := r.offset(at + int64(edges[1]))
		if !r.yield(extent.Extent{Off: off, Len: end - off}, nil) {
			return false
		}
	}
	if len(edges) == 1 {
		r.start = at + int64(edges[0])
	}
	return true
}

func (r *runs) begin(bit int64) {
	if r.start < 0 {
		r.start = bit
	}
}

// end closes the run that is open, if one is, in front of bit.
func (r *runs) end(bit int64) bool {
	if r.start < 0 {
		return true
	}
	off := r.offset(r.start)
	r.start = -1
	return r.yield(extent.Extent{Off: off, Len: r.offset(bit) - off}, nil)
}

// Count returns the number of set bits. The dirty bytes that are reported for
// a disk are this times the granularity, as QEMU counts them. With an error
// the count means nothing.
//
// Errors are *Error, or the error of ctx.
func (b *Bitmap) Count(ctx context.Context) (setBits int64, err error) {
	if err := b.Validate(); err != nil {
		return 0, err
	}
	for p, err := range b.pieces(ctx) {
		if err != nil {
			return 0, err
		}
		switch p.kind {
		case dirty:
			setBits += p.count
		case mixed:
			setBits += popcount(p.words)
		}
	}
	return setBits, nil
}

// popcount counts the ones in whole words.
func popcount(words []byte) int64 {
	le := binary.LittleEndian
	var a, b, c, d int
	for ; len(words) >= 32; words = words[32:] {
		a += bits.OnesCount64(le.Uint64(words))
		b += bits.OnesCount64(le.Uint64(words[8:]))
		c += bits.OnesCount64(le.Uint64(words[16:]))
		d += bits.OnesCount64(le.Uint64(words[24:]))
	}
	for ; len(words) >= wordBytes; words = words[wordBytes:] {
		a += bits.OnesCount64(le.Uint64(words))
	}
	return int64(a + b + c + d)
}
