//go:build !purego

package iszero

import "golang.org/x/sys/cpu"

// useAVX2 is decided once, at start, and never changes.
var useAVX2 = cpu.X86.HasAVX2

// avx2TurnBytes is what the loop of isZeroAVX2 takes at a time.
const avx2TurnBytes = 256

// isZero leaves to the assembly what fills whole turns. The rest goes to plain
// Go, which also takes buffers too short to be worth a call.
func isZero(b []byte) bool {
	if !useAVX2 || len(b) < avx2TurnBytes {
		return isZeroWords(b)
	}
	// Most blocks with data have some at their front: for those the call, and
	// with it the upper halves of the vector registers, is spared.
	if !isZeroWords(b[:turnBytes]) {
		return false
	}
	whole := len(b) &^ (avx2TurnBytes - 1)
	return isZeroAVX2(&b[0], whole) && isZeroWords(b[whole:])
}

// isZeroAVX2 tells whether the n bytes at p are zero. n is a positive multiple
// of avx2TurnBytes; p may have any alignment. It needs AVX2.
//
//go:noescape
func isZeroAVX2(p *byte, n int) bool
