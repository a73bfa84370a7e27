package iszero

import (
	"bytes"
	"fmt"
	"testing"
	"unsafe"

	"github.com/qbackup/qbackup/internal/testtool"
)

// aligned returns n bytes whose address is align beyond a multiple of 64, with
// ones in front of and behind them, which nobody may look at.
func aligned(n, align int) []byte {
	const line = 64
	b := bytes.Repeat([]byte{0xff}, n+3*line)
	start := line - int(uintptr(unsafe.Pointer(&b[0]))%line) + align
	b = b[start : start+n : start+n]
	clear(b)
	return b
}

func check(t *testing.T, b []byte, want bool, what string) {
	t.Helper()
	if got := IsZero(b); got != want {
		t.Fatalf("IsZero %v: %s", got, what)
	}
	if got := isZeroWords(b); got != want {
		t.Fatalf("isZeroWords %v: %s", got, what)
	}
}

func TestZerosAreZeroAtEveryLengthAndAlignment(t *testing.T) {
	for align := range 64 {
		for n := range 1025 {
			check(t, aligned(n, align), true, fmt.Sprintf("%d zeros at alignment %d", n, align))
		}
	}
}

// A single bit anywhere must be seen: a block taken for zero by mistake is a
// block lost. The ordinary run looks at every place of every length at some
// alignments, the long one at all.
func TestASingleBitIsSeenAtEveryPlaceOfEveryLength(t *testing.T) {
	step := testtool.Count(31, 1)
	for align := 0; align < 64; align += step {
		for n := 1; n <= 1024; n++ {
			b := aligned(n, align)
			for at := range b {
				b[at] = 1 << (at % 8)
				if IsZero(b) || isZeroWords(b) {
					t.Fatalf("a bit at %d of %d, alignment %d, was not seen", at, n, align)
				}
				b[at] = 0
			}
		}
	}
}

func TestTheBytesAroundABlockDoNotCount(t *testing.T) {
	for _, n := range []int{0, 1, 7, 63, 64, 255, 256, 257, 4096, 65536} {
		check(t, aligned(n, 3), true, fmt.Sprintf("%d zeros among ones", n))
	}
	check(t, nil, true, "nil")
}

func TestIsZeroAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		var b [4096]byte
		if !IsZero(b[:]) {
			t.Error("zeros were not zero")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzIsZero(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint8(0))
	f.Add([]byte{0, 0, 1}, uint16(1024), uint8(63))
	f.Add([]byte{0}, uint16(256), uint8(1))
	f.Fuzz(func(t *testing.T, tail []byte, zeros uint16, align uint8) {
		b := aligned(int(zeros)+len(tail), int(align%64))
		copy(b[zeros:], tail)
		want := bytes.Count(tail, []byte{0}) == len(tail)
		check(t, b, want, fmt.Sprintf("%d zeros, then %x, alignment %d", zeros, tail, align%64))
	})
}

func BenchmarkIsZero(b *testing.B) {
	zeros := make([]byte, 4096)
	variants := []struct {
		name string
		f    func([]byte) bool
	}{
		{"dispatched", IsZero},
		{"words", isZeroWords},
		{"bytes.Equal", func(p []byte) bool {
			for len(p) > len(zeros) {
				if !bytes.Equal(p[:len(zeros)], zeros) {
					return false
				}
				p = p[len(zeros):]
			}
			return bytes.Equal(p, zeros[:len(p)])
		}},
	}
	for _, size := range []int{512, 64 << 10, 256 << 10, 64 << 20} {
		for _, v := range variants {
			b.Run(fmt.Sprintf("%s/%dKiB", v.name, size>>10), func(b *testing.B) {
				p := make([]byte, size)
				b.SetBytes(int64(size))
				for b.Loop() {
					if !v.f(p) {
						b.Fatal("zeros were not zero")
					}
				}
			})
		}
	}
}
