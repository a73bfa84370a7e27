package bitmapscan

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// edgesByBit is what edges must find, a bit at a time.
func edgesByBit(words []byte, before uint64) []uint32 {
	var out []uint32
	for i := range uint32(len(words) * 8) {
		bit := uint64(words[i/8]>>(i%8)) & 1
		if bit != before {
			out = append(out, i)
		}
		before = bit
	}
	return out
}

func popcountByBit(words []byte) (n int64) {
	for i := range len(words) * 8 {
		n += int64(words[i/8]>>(i%8)) & 1
	}
	return n
}

func checkEdges(t *testing.T, words []byte, before uint64) {
	t.Helper()
	var slots [edgeSlots]uint32
	n := edges(&slots, words, before)
	if want := edgesByBit(words, before); !slices.Equal(slots[:n], want) {
		t.Fatalf("%d bytes after a %d: got %v, want %v\n%x", len(words), before, slots[:n], want, words)
	}
	if got, want := popcount(words), popcountByBit(words); got != want {
		t.Fatalf("popcount %d, want %d: %x", got, want, words)
	}
}

func TestEdgesOfEveryShortRunAtEveryPlaceEqualTheReference(t *testing.T) {
	const size = 192             // three turns of the loop
	step := testtool.Count(7, 1) // 7 meets every place of a word, and of a turn
	for start := 0; start < size*8; start += step {
		for _, length := range []int{1, 2, 63, 64, 65, 511, 512, 513, 1024} {
			words := make([]byte, size)
			for bit := start; bit < min(start+length, size*8); bit++ {
				words[bit/8] |= 1 << (bit % 8)
			}
			checkEdges(t, words, uint64(start)&1)
			for i := range words {
				words[i] ^= 0xff
			}
			checkEdges(t, words, uint64(start)&1)
		}
	}
}

func TestEdgesOfRandomWordsEqualTheReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range testtool.Count(300, 20000) {
		words := make([]byte, wordBytes*r.IntN(edgeBytes/wordBytes+1))
		fill(r, words, r.Float64())
		checkEdges(t, words, r.Uint64()&1)
	}
}

func TestEdgesFitTheirSlotsWhenEveryBitChanges(t *testing.T) {
	words := make([]byte, edgeBytes)
	for i := range words {
		words[i] = 0x55
	}
	checkEdges(t, words, 0)
	checkEdges(t, words, 1)
}

// fill makes words of all kinds: uniform ones, random ones, ones with few bits.
func fill(r *rand.Rand, words []byte, uniformity float64) {
	for i := 0; i < len(words); i += wordBytes {
		var w uint64
		switch {
		case r.Float64() < uniformity:
			w = -(r.Uint64() & 1)
			if i > 0 && r.IntN(8) > 0 { // mostly as the word in front
				w = binary.LittleEndian.Uint64(words[i-wordBytes:])
			}
		case r.IntN(2) == 0:
			w = 1 << r.IntN(64)
		default:
			w = r.Uint64()
		}
		binary.LittleEndian.PutUint64(words[i:], w)
	}
}

func FuzzEdges(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, true)
	f.Add(make([]byte, 130), false)
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff, 0, 0xff}, true)
	f.Fuzz(func(t *testing.T, words []byte, inRun bool) {
		words = words[:min(len(words), edgeBytes)/wordBytes*wordBytes]
		before := uint64(0)
		if inRun {
			before = 1
		}
		checkEdges(t, words, before)
	})
}
