package verify

import (
	"context"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

func findMap(m *format.Manifest, seq uint32) (int, bool) {
	return slices.BinarySearchFunc(m.Maps, seq, func(e format.MapEntry, seq uint32) int { return int(int64(e.Seq) - int64(seq)) })
}

func findPack(m *format.Manifest, seq uint32) (int, bool) {
	return slices.BinarySearchFunc(m.Packs, seq, func(e format.PackEntry, seq uint32) int { return int(int64(e.Seq) - int64(seq)) })
}

// span looks at a span of data of a leaf: run, pack and blocks must be there, and be this disk's blocks. It reports whether
// something is damaged.
func (w *diskWalk) span(ctx context.Context, leaf format.NodeRef, s blockmap.Span) (bool, error) {
	m := w.m
	n, ok := w.p.needs[s.Loc.Run]
	if !ok {
		w.report(wholeObject(format.ManifestKey(m.name, w.p.record.Run), "it does not name run %s, to which a map refers", s.Loc.Run), s.First, s.Count)
		return true, nil
	}
	if n.bad != nil {
		w.report(*n.bad, s.First, s.Count)
		return true, nil
	}
	i, ok := findPack(n.run.manifest, s.Loc.Pack)
	if !ok {
		w.report(wholeObject(format.ManifestKey(m.name, s.Loc.Run), "it does not name pack %d, to which a map refers", s.Loc.Pack), s.First, s.Count)
		return true, nil
	}
	n.run.packUsed[i].Store(true)
	x, bad, err := m.index(ctx, n.run, n.run.manifest.Packs[i])
	if err != nil {
		return false, err
	}
	if bad != nil {
		w.report(*bad, s.First, s.Count)
		return true, nil
	}
	return w.blocksOf(leaf, s, x), nil
}

// blocksOf compares what the map says of blocks with what the index of their pack says.
func (w *diskWalk) blocksOf(leaf format.NodeRef, s blockmap.Span, x *format.PackIndex) (damaged bool) {
	key := format.MapKey(w.m.name, leaf.Run, leaf.Object)
	pack := format.PackKey(w.m.name, s.Loc.Run, s.Loc.Pack)
	for done := int64(0); done < s.Count; {
		block, ordinal := s.First+done, s.Loc.Ordinal+uint32(done)
		f, ok := x.Frame(ordinal)
		if !ok {
			w.report(finding{key, int64(leaf.Offset), int64(leaf.Length),
				fmt.Sprintf("it refers to block %d of %s, which has %d", ordinal, pack, x.DataBlocks())}, block, s.Count-done)
			return true
		}
		skip := int64(ordinal - f.FirstOrdinal)
		count := min(s.Count-done, int64(f.Blocks)-skip)
		// Blocks keep their number for ever: only a block of the same place is compared with. Disks may be numbered
		// otherwise in the next run, but not within one.
		if f.FirstBlock+skip != block || s.Loc.Run == w.p.record.Run && int(f.Disk) != w.disk.Ordinal {
			w.report(finding{key, int64(leaf.Offset), int64(leaf.Length),
				fmt.Sprintf("it has block %d of the disk at %s, where block %d of disk %d lies", block, pack, f.FirstBlock+skip, f.Disk)}, block, count)
			damaged = true
		}
		for _, b := range w.m.badFrames[packID{s.Loc.Run, s.Loc.Pack}] {
			from, end := max(ordinal, b.first), min(ordinal+uint32(count), b.end)
			if from < end {
				w.report(b.finding, block+int64(from-ordinal), int64(end-from))
				damaged = true
			}
		}
		done += count
	}
	return damaged
}
