package agent

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

const (
	// sampleBlocks is how many clean blocks of each incremental disk are read
	// again. More are drawn, since dirty ones fall away.
	sampleBlocks = 16
	sampleDraws  = 4 * sampleBlocks
	// differBlocks is how many blocks that tell two disks apart are compared.
	differBlocks = 16
	// sampleParallel is how many requests a sample has in flight: each waits for
	// the store, and a run should not.
	sampleParallel = 8
	// proofBlocks is how many blocks are compared to recognise a machine.
	proofBlocks = 64
)

// hashes tells the hash of a stored block, false when it is not known.
type hashes interface {
	BlockHash(ctx context.Context, loc format.Location) (format.BlockHash, bool, error)
}

// sampler compares blocks of one disk with what a point holds.
type sampler struct {
	disk       io.ReaderAt
	sizeBytes  int64 // of the disk
	blockBytes int64
	old        pointMap
	blocks     int64 // that the disk and the point have in common, not those that are padding in one of them
	hashes     hashes
	sum        func([]byte) format.BlockHash
	random     io.Reader
}

// probe is one block and what the point says of it.
type probe struct {
	block int64
	span  blockmap.Span // one block
}

// draw picks up to n random blocks that hold data in the point, ascending and
// each once. A draw that falls on zeros takes one of the next stretch of data, from
// the start again at the end, so that sparse disks are sampled too.
func (s *sampler) draw(ctx context.Context, n int) ([]probe, error) {
	if s.blocks == 0 {
		return nil, nil
	}
	words := make([]byte, 16*n)
	if _, err := io.ReadFull(s.random, words); err != nil {
		return nil, fmt.Errorf("read random bytes: %w", err)
	}
	probes := make([]probe, n)
	found := make([]bool, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(sampleParallel)
	for i := range n {
		start := int64(binary.LittleEndian.Uint64(words[16*i:]) % uint64(s.blocks))
		within := binary.LittleEndian.Uint64(words[16*i+8:])
		group.Go(func() (err error) {
			probes[i], found[i], err = s.dataAt(ctx, start, s.blocks, within)
			if err == nil && !found[i] {
				probes[i], found[i], err = s.dataAt(ctx, 0, start, within)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if slices.Contains(found, false) {
		return nil, nil // the whole disk is zero
	}
	slices.SortFunc(probes, func(a, b probe) int { return cmp.Compare(a.block, b.block) })
	return slices.CompactFunc(probes, func(a, b probe) bool { return a.block == b.block }), nil
}

// dataAt finds a block with data in [from, to): from itself, or any of the next
// stretch.
func (s *sampler) dataAt(ctx context.Context, from, to int64, within uint64) (probe, bool, error) {
	if from >= to {
		return probe{}, false, nil
	}
	for span, err := range s.old.Spans(ctx, from, to-from) {
		if err != nil {
			return probe{}, false, err
		}
		if span.Zero {
			continue
		}
		block := from
		if span.First != from {
			block = span.First + int64(within%uint64(span.Count))
		}
		return probe{block, span.Clip(block, block+1)}, true, nil
	}
	return probe{}, false, nil
}

// clean drops the probes that lie in dirty ranges. Both ascend.
func clean(probes []probe, dirty extent.Seq, blockBytes int64) ([]probe, error) {
	var kept []probe
	for e, err := range dirty {
		if err != nil {
			return nil, err
		}
		for len(probes) > 0 && (probes[0].block+1)*blockBytes <= e.Off {
			kept, probes = append(kept, probes[0]), probes[1:]
		}
		for len(probes) > 0 && probes[0].block*blockBytes < e.End() {
			probes = probes[1:]
		}
		if len(probes) == 0 {
			return kept, nil
		}
	}
	return append(kept, probes...), nil
}

// compare reads the probes and counts those that equal the point; unknown are
// those whose stored hash cannot be had. The first that differs is returned.
func (s *sampler) compare(ctx context.Context, probes []probe) (equal, unknown int, differs *probe, err error) {
	verdicts := make([]verdict, len(probes))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(sampleParallel)
	for i, p := range probes {
		group.Go(func() (err error) {
			verdicts[i], err = s.judge(ctx, p)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, 0, nil, err
	}
	for i, v := range verdicts {
		switch {
		case v == blockEqual:
			equal++
		case v == blockUnknown:
			unknown++
		case differs == nil:
			differs = &probes[i]
		}
	}
	return equal, unknown, differs, nil
}

// verdict is what a comparison of one block finds.
type verdict uint8

const (
	blockDiffers verdict = iota
	blockEqual
	blockUnknown
)

// judge reads one block and compares it with the point.
func (s *sampler) judge(ctx context.Context, p probe) (verdict, error) {
	buffer := make([]byte, s.blockBytes)
	var want format.BlockHash
	if p.span.Zero {
		want = s.sum(buffer)
	} else {
		var known bool
		var err error
		if want, known, err = s.hashes.BlockHash(ctx, p.span.Loc); err != nil {
			return 0, fmt.Errorf("learn the hash of block %d: %w", p.block, err)
		}
		if !known {
			return blockUnknown, nil
		}
	}
	off := p.block * s.blockBytes
	n := int(min(s.blockBytes, s.sizeBytes-off))
	if m, err := s.disk.ReadAt(buffer[:n], off); m < n {
		return 0, fmt.Errorf("read %d bytes at %d: %w", n, off, errors.Join(err, errShort(err)))
	}
	if s.sum(buffer) != want {
		return blockDiffers, nil
	}
	return blockEqual, nil
}

func errShort(err error) error {
	if err != nil {
		return nil
	}
	return io.ErrUnexpectedEOF
}

// apart finds clean blocks in which another disk's map differs from this one's:
// if the two images were swapped, these show it. Blocks at the same place of the
// repository are the same; others differ unless their hashes say otherwise.
func (s *sampler) apart(ctx context.Context, other spans, otherBlocks int64, dirty extent.Seq) ([]probe, error) {
	next, stop := iter.Pull2(dirty)
	defer stop()
	var e extent.Extent
	more := true
	var err error
	isDirty := func(block int64) bool {
		for more && err == nil && e.End() <= block*s.blockBytes {
			e, err, more = next()
		}
		return more && e.Off < (block+1)*s.blockBytes
	}
	var probes []probe
	for pair, walkErr := range pairs(ctx, s.old, other, min(s.blocks, otherBlocks)) {
		if walkErr != nil {
			return nil, walkErr
		}
		for block := pair[0].First; block < pair[0].End(); block++ {
			if isDirty(block) {
				continue
			}
			if err != nil {
				return nil, err
			}
			differ, err := s.differ(ctx, pair[0].Clip(block, block+1), pair[1].Clip(block, block+1))
			if err != nil {
				return nil, err
			}
			if differ {
				probes = append(probes, probe{block, pair[0].Clip(block, block+1)})
			}
			if len(probes) == differBlocks {
				return probes, nil
			}
		}
	}
	return probes, err
}

// differ tells whether two blocks of points have different content, as far as is
// known.
func (s *sampler) differ(ctx context.Context, a, b blockmap.Span) (bool, error) {
	if a.Zero || b.Zero {
		return a.Zero != b.Zero, nil
	}
	ha, knownA, err := s.hashes.BlockHash(ctx, a.Loc)
	if err != nil {
		return false, err
	}
	hb, knownB, err := s.hashes.BlockHash(ctx, b.Loc)
	return !knownA || !knownB || ha != hb, err
}

// pairs walks two maps side by side and yields what they say of the same blocks,
// leaving out where they say the same.
func pairs(ctx context.Context, a, b spans, blocks int64) iter.Seq2[[2]blockmap.Span, error] {
	return func(yield func([2]blockmap.Span, error) bool) {
		if blocks == 0 {
			return
		}
		next, stop := iter.Pull2(b.Spans(ctx, 0, blocks))
		defer stop()
		var y blockmap.Span
		for x, err := range a.Spans(ctx, 0, blocks) {
			for at := x.First; err == nil && at < x.End(); at = min(x.End(), y.End()) {
				if y.End() <= at {
					var more bool
					if y, err, more = next(); err != nil {
						break
					}
					if !more {
						return
					}
				}
				end := min(x.End(), y.End())
				px, py := x.Clip(at, end), y.Clip(at, end)
				if px.Zero && py.Zero || !px.Zero && !py.Zero && px.Loc == py.Loc {
					continue
				}
				if !yield([2]blockmap.Span{px, py}, nil) {
					return
				}
			}
			if err != nil {
				yield([2]blockmap.Span{}, err)
				return
			}
		}
	}
}
