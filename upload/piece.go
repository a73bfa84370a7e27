package upload

import (
	"fmt"
	"iter"
	"math/bits"

	"github.com/qbackup/qbackup/internal/extent"
)

// piece is the unit of work: blocks of one disk, in ascending order from piece to piece.
//
// A window covers at most windowBlocks blocks from first on; bit i of read and of zero speaks of block first+i, and
// no block has both. A stretch (count > 0) is any number of blocks that are all known to be zero.
type piece struct {
	first int64
	count int64
	read  uint64
	zero  uint64
}

// blockRun is a run of neighbouring blocks that are all to be read, or all known to be zero.
type blockRun struct {
	first, count int64
	zero         bool
}

func (r blockRun) end() int64 { return r.first + r.count }

// grid is the division of one disk into blocks and windows.
type grid struct {
	blockBytes   int64
	windowBlocks int64 // a power of two, at most 64
	sizeBytes    int64
}

func newGrid(blockBytes, sizeBytes int64) grid {
	return grid{blockBytes: blockBytes, windowBlocks: max(windowBytes/blockBytes, 1), sizeBytes: sizeBytes}
}

// blockLen is how many bytes of the disk block n holds: less than a block at the end of the disk.
func (g grid) blockLen(n int64) int64 {
	return min(g.blockBytes, g.sizeBytes-n*g.blockBytes)
}

// runLen is how many bytes of the disk the blocks [first, first+count) hold.
func (g grid) runLen(first, count int64) int64 {
	return min((first+count)*g.blockBytes, g.sizeBytes) - first*g.blockBytes
}

// pieces divides ascending extents into pieces. Extents are widened outwards to blocks; a block counts as zero only
// when zero extents cover all of it, since what lies between extents is unknown here.
func (g grid) pieces(extents extent.Seq) iter.Seq2[piece, error] {
	return func(yield func(piece, error) bool) {
		var window piece
		flush := func() bool {
			if window.read|window.zero == 0 {
				return true
			}
			full := window
			window = piece{}
			return yield(full, nil)
		}
		for run, err := range g.runs(extents) {
			if err != nil {
				yield(piece{}, err)
				return
			}
			if run.zero && run.count >= g.windowBlocks {
				if !flush() || !yield(piece{first: run.first, count: run.count}, nil) {
					return
				}
				continue
			}
			for run.count > 0 {
				start := run.first &^ (g.windowBlocks - 1)
				if window.first != start {
					if !flush() {
						return
					}
					window.first = start
				}
				n := min(run.count, start+g.windowBlocks-run.first)
				mask := (^uint64(0) >> (64 - n)) << (run.first - start)
				if run.zero {
					window.zero |= mask
				} else {
					window.read |= mask
				}
				run.first += n
				run.count -= n
			}
		}
		flush()
	}
}

// runs turns ascending extents into ascending, merged runs of blocks.
func (g grid) runs(extents extent.Seq) iter.Seq2[blockRun, error] {
	return func(yield func(blockRun, error) bool) {
		var out blockRun   // what is merged so far
		block := int64(-1) // the block that the last extent ended in, not yet in out
		zeroBytes, hasData := int64(0), false

		emit := func(r blockRun) bool {
			if r.count == 0 {
				return true
			}
			if out.count > 0 && out.zero == r.zero && out.end() == r.first {
				out.count += r.count
				return true
			}
			done := out
			out = r
			return done.count == 0 || yield(done, nil)
		}
		closeBlock := func() bool {
			if block < 0 {
				return true
			}
			r := blockRun{first: block, count: 1, zero: !hasData && zeroBytes == g.blockLen(block)}
			block, zeroBytes, hasData = -1, 0, false
			return emit(r)
		}
		for e, err := range extents {
			if err != nil {
				yield(blockRun{}, err)
				return
			}
			if e.Off < 0 || e.Len < 0 || e.End() > g.sizeBytes {
				yield(blockRun{}, fmt.Errorf("extent %v lies beyond the disk's %d bytes", e, g.sizeBytes))
				return
			}
			if e.Len == 0 {
				continue
			}
			first, last := e.Off/g.blockBytes, (e.End()-1)/g.blockBytes
			if block != first && !closeBlock() {
				return
			}
			// The first and the last block may be shared with neighbouring extents; those between cannot.
			for n, ends := first, false; !ends; n = last {
				block, ends = n, n == last
				if e.Zero {
					zeroBytes += min(e.End(), (n+1)*g.blockBytes) - max(e.Off, n*g.blockBytes)
				} else {
					hasData = true
				}
				if !ends && (!closeBlock() || !emit(blockRun{first: first + 1, count: last - first - 1, zero: e.Zero})) {
					return
				}
			}
		}
		if closeBlock() && out.count > 0 {
			yield(out, nil)
		}
	}
}

// eachRun calls f for every run of set bits in mask, ascending, until f fails.
func eachRun(mask uint64, f func(first, count int) error) error {
	for base := 0; mask != 0; {
		skip := bits.TrailingZeros64(mask)
		mask >>= skip
		n := bits.TrailingZeros64(^mask)
		if err := f(base+skip, n); err != nil {
			return err
		}
		base += skip + n
		if n == 64 {
			return nil
		}
		mask >>= n
	}
	return nil
}
