package agent

import (
	"context"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
)

// tailRuns is how many runs of dirty blocks are kept at a time while the end of a
// disk is looked at.
const tailRuns = 4096

// pointMap is a map that can also be looked at from its end; *blockmap.Reader is
// one.
type pointMap interface {
	spans
	LastData(ctx context.Context, before int64) (blockmap.Span, bool, error)
}

// lastClean finds the last clean block with data in the point. A disk that was
// made smaller and then as large as before has lost its end, and QEMU sets no bit
// for that: a bitmap is cut and extended with zeros like the disk. Of what was
// lost without a bit, this block is the last, so that one comparison tells,
// whatever was lost.
//
// most bounds how many dirty runs are kept; dirty is asked again for more.
func (s *sampler) lastClean(ctx context.Context, dirty func() extent.Seq, most int) (probe, bool, error) {
	before := s.blocks
	for {
		runs, err := lastRuns(dirty(), before, s.blockBytes, most)
		if err != nil {
			return probe{}, false, err
		}
		floor := int64(0) // below it there may be runs that were not kept
		if len(runs) == most {
			floor = runs[0].first
		}
		for {
			span, found, err := s.old.LastData(ctx, before)
			if err != nil || !found {
				return probe{}, false, err
			}
			for len(runs) > 0 && runs[len(runs)-1].first > span.First {
				runs = runs[:len(runs)-1]
			}
			before = span.End()
			if span.First < floor {
				break
			}
			if len(runs) == 0 || runs[len(runs)-1].end <= span.First {
				return probe{span.First, span}, true, nil
			}
			before = runs[len(runs)-1].first
		}
	}
}

// blockRun is a stretch of blocks [first, end).
type blockRun struct{ first, end int64 }

// lastRuns gives the last runs of dirty blocks that begin below a block, joined
// where they touch, ascending, so many at the most.
func lastRuns(dirty extent.Seq, before, blockBytes int64, most int) ([]blockRun, error) {
	var runs []blockRun
	for e, err := range dirty {
		if err != nil {
			return nil, err
		}
		run := blockRun{e.Off / blockBytes, (e.End() + blockBytes - 1) / blockBytes}
		if run.first >= before {
			break
		}
		if n := len(runs); n > 0 && run.first <= runs[n-1].end {
			runs[n-1].end = max(runs[n-1].end, run.end)
			continue
		}
		if len(runs) == 2*most {
			runs = append(runs[:0], runs[most:]...)
		}
		runs = append(runs, run)
	}
	return runs[max(len(runs)-most, 0):], nil
}
