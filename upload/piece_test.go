package upload

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
)

// blocksOf is the slow twin of grid.pieces: a byte per byte of the disk.
func blocksOf(g grid, extents []extent.Extent) (read, zero []int64) {
	covered := make([]byte, g.sizeBytes) // 1 data, 2 zero
	for _, e := range extents {
		for i := e.Off; i < e.End(); i++ {
			covered[i] = 1
			if e.Zero {
				covered[i] = 2
			}
		}
	}
	for n := int64(0); n*g.blockBytes < g.sizeBytes; n++ {
		block := covered[n*g.blockBytes:][:g.blockLen(n)]
		data := slices.Contains(block, 1)
		zeros := slices.Contains(block, 2)
		switch {
		case zeros && !data && !slices.Contains(block, 0):
			zero = append(zero, n)
		case data || zeros:
			read = append(read, n)
		}
	}
	return read, zero
}

func piecesOf(t *testing.T, g grid, extents []extent.Extent) (read, zero []int64) {
	t.Helper()
	last := int64(-1)
	for p, err := range g.pieces(extent.Of(extents...)) {
		if err != nil {
			t.Fatal(err)
		}
		if blocks := p.first + int64(bits.TrailingZeros64(p.read|p.zero)); p.count == 0 && blocks <= last || p.count > 0 && p.first <= last {
			t.Fatalf("piece %+v does not ascend", p)
		}
		if p.count > 0 {
			for n := range p.count {
				zero = append(zero, p.first+n)
			}
			last = p.first + p.count - 1
			continue
		}
		if p.first%g.windowBlocks != 0 || p.read&p.zero != 0 || p.read|p.zero == 0 {
			t.Fatalf("window %+v is not aligned, empty, or has a block twice", p)
		}
		for i := range int64(64) {
			if p.read>>i&1 == 1 {
				read = append(read, p.first+i)
				last = p.first + i
			}
			if p.zero>>i&1 == 1 {
				zero = append(zero, p.first+i)
				last = p.first + i
			}
		}
	}
	return read, zero
}

func TestPiecesCoverExactlyTheBlocksThatExtentsTouch(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	for range 3000 {
		g := grid{blockBytes: 16, windowBlocks: 1 << random.IntN(4), sizeBytes: random.Int64N(2000) + 1}
		var extents []extent.Extent
		for off := int64(0); ; {
			if random.IntN(3) > 0 {
				off += random.Int64N(60)
			}
			n := random.Int64N(120) + 1
			if off+n > g.sizeBytes {
				break
			}
			extents = append(extents, extent.Extent{Off: off, Len: n, Zero: random.IntN(2) == 0})
			off += n
		}
		wantRead, wantZero := blocksOf(g, extents)
		read, zero := piecesOf(t, g, extents)
		if !slices.Equal(read, wantRead) || !slices.Equal(zero, wantZero) {
			t.Fatalf("grid %+v, extents %+v:\nread %v, want %v\nzero %v, want %v", g, extents, read, wantRead, zero, wantZero)
		}
	}
}

func TestATerabyteOfZerosIsOnePiece(t *testing.T) {
	const size = 16 << 40
	g := newGrid(64<<10, size)
	n := 0
	for p, err := range g.pieces(extent.Of(extent.Extent{Len: size, Zero: true})) {
		if err != nil || p.count != size/(64<<10) {
			t.Fatalf("piece %+v, error %v", p, err)
		}
		n++
	}
	if n != 1 {
		t.Fatalf("%d pieces, want 1", n)
	}
}

func TestEachRunFindsTheRunsOfAMask(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	masks := []uint64{0, 1, 1 << 63, ^uint64(0), 0xff00ff, 1<<63 | 1}
	for range 1000 {
		masks = append(masks, random.Uint64()&random.Uint64(), random.Uint64())
	}
	for _, mask := range masks {
		var got uint64
		end := -1
		_ = eachRun(mask, func(first, count int) error {
			if first <= end {
				t.Fatalf("mask %x: run at %d touches the run before it", mask, first)
			}
			end = first + count
			got |= (^uint64(0) >> (64 - count)) << first
			return nil
		})
		if got != mask {
			t.Fatalf("mask %x: runs give %x", mask, got)
		}
	}
}
