//go:build !purego

#include "textflag.h"

// func isZeroAVX2(p *byte, n int) bool
//
// SI walks the bytes, CX counts those left. Each turn ORs 256 bytes through
// four accumulators, so that no load waits for another, and leaves at the first
// turn that is not zero. Loads are unaligned: on processors with AVX2 they cost
// nothing where the address happens to be aligned.
TEXT ·isZeroAVX2(SB), NOSPLIT, $0-17
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX

turn:
	VMOVDQU (SI), Y0
	VMOVDQU 32(SI), Y1
	VMOVDQU 64(SI), Y2
	VMOVDQU 96(SI), Y3
	VPOR    128(SI), Y0, Y0
	VPOR    160(SI), Y1, Y1
	VPOR    192(SI), Y2, Y2
	VPOR    224(SI), Y3, Y3
	VPOR    Y1, Y0, Y0
	VPOR    Y3, Y2, Y2
	VPOR    Y2, Y0, Y0
	VPTEST  Y0, Y0
	JNZ     found
	ADDQ    $256, SI
	SUBQ    $256, CX
	JNZ     turn

	MOVB $1, ret+16(FP)
	VZEROUPPER
	RET

found:
	MOVB $0, ret+16(FP)
	VZEROUPPER
	RET
