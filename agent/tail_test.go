package agent

import (
	"math/rand/v2"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestTheLastCleanBlockWithDataIsFoundBehindAnyDirtyRuns(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range testtool.Count(2000, 50_000) {
		blocks := 1 + rng.IntN(60)
		var data []int
		for n := range blocks {
			if rng.IntN(3) > 0 {
				data = append(data, n)
			}
		}
		w := newBlockWorld(blocks, 1, data...)
		dirty, isDirty := someDirt(rng, blocks)
		want := -1
		for _, n := range data {
			if !isDirty[n] {
				want = n
			}
		}
		for _, most := range []int{1, 2, 3, tailRuns} {
			got, found, err := w.sampler().lastClean(t.Context(), func() extent.Seq { return extent.Of(dirty...) }, most)
			if err != nil || found != (want >= 0) || found && (got.block != int64(want) || got.span.Loc != *w.old[want]) {
				t.Fatalf("round %d, %d runs at a time: block %d, %v, %v; want %d of %v, dirty %v", round, most, got.block, found, err, want, data, dirty)
			}
		}
	}
}

// someDirt makes ascending extents that begin and end anywhere.
func someDirt(rng *rand.Rand, blocks int) ([]extent.Extent, []bool) {
	var dirty []extent.Extent
	isDirty := make([]bool, blocks)
	for at := rng.IntN(3 * worldBlock); at < blocks*worldBlock; {
		n := min(1+rng.IntN(3*worldBlock), blocks*worldBlock-at)
		dirty = append(dirty, extent.Extent{Off: int64(at), Len: int64(n)})
		for b := at / worldBlock; b*worldBlock < at+n; b++ {
			isDirty[b] = true
		}
		at += n + rng.IntN(3*worldBlock)
	}
	return dirty, isDirty
}
