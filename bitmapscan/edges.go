package bitmapscan

import (
	"encoding/binary"
	"math/bits"
)

const (
	// edgeBytes is how much of a bitmap becomes edges at a time, so that
	// bits, edges and code stay in the nearest cache.
	edgeBytes = 2 << 10
	// edgeSlots is room for an edge at each bit of edgeBytes.
	edgeSlots = edgeBytes * 8
	// skipBytes is a turn of the loop that passes over uniform stretches.
	skipBytes = 64
)

// edges finds the places where a bitmap changes between zeros and ones.
//
// words are whole words of at most edgeBytes. before is the bit in front of
// them, 0 or 1. It stores at dst the numbers of the bits that differ from the
// bit in front of them, ascending, and returns how many there are. So the first
// edge begins a run of ones if before is 0, and ends one if before is 1, and
// after that they alternate.
func edges(dst *[edgeSlots]uint32, words []byte, before uint64) int {
	n, base := 0, uint32(0)
	for len(words) >= skipBytes {
		turn := words[:skipBytes:skipBytes]
		if uniform(turn, -before) {
			base += skipBytes * 8
			words = words[skipBytes:]
			continue
		}
		for i := 0; i < skipBytes; i += wordBytes {
			w := binary.LittleEndian.Uint64(turn[i:])
			t := w ^ (w<<1 | before)
			before = w >> (wordBits - 1)
			n = store(dst, n, base, t)
			base += wordBits
		}
		words = words[skipBytes:]
	}
	for len(words) >= wordBytes {
		w := binary.LittleEndian.Uint64(words)
		t := w ^ (w<<1 | before)
		before = w >> (wordBits - 1)
		n = store(dst, n, base, t)
		base += wordBits
		words = words[wordBytes:]
	}
	return n
}

// uniform tells whether the 64 bytes of b are eight words of the value fill.
func uniform(b []byte, fill uint64) bool {
	le := binary.LittleEndian
	_ = b[skipBytes-1]
	d := le.Uint64(b[0:]) ^ fill
	d |= le.Uint64(b[8:]) ^ fill
	d |= le.Uint64(b[16:]) ^ fill
	d |= le.Uint64(b[24:]) ^ fill
	d |= le.Uint64(b[32:]) ^ fill
	d |= le.Uint64(b[40:]) ^ fill
	d |= le.Uint64(b[48:]) ^ fill
	d |= le.Uint64(b[56:]) ^ fill
	return d == 0
}

// store puts base plus the number of each bit of t at dst[n:] and returns the
// new n. Storing a fixed number of places without a look at t, which spares a
// misprediction for each word, was tried: it gained nothing that could be
// measured.
func store(dst *[edgeSlots]uint32, n int, base uint32, t uint64) int {
	for t != 0 {
		dst[n] = base + uint32(bits.TrailingZeros64(t))
		n++
		t &= t - 1
	}
	return n
}
