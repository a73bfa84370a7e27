package repo

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// BenchmarkReadAt reads a disk of 64 MiB in the pieces that a restore uses; half of
// each block compresses.
func BenchmarkReadAt(b *testing.B) {
	w := newWorld(b)
	const blocks = 64 << 20 / testBlock
	run := w.backup(nil, blocks*testBlock, change{0, blocks, 1}).record.Run
	d := w.diskOf(run)
	p := make([]byte, 4<<20)
	b.SetBytes(d.Size())
	for b.Loop() {
		for off := int64(0); off < d.Size(); off += int64(len(p)) {
			if _, err := d.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkSmallReads reads 4 KiB at random places, as a VM would that runs from
// the point.
func BenchmarkSmallReads(b *testing.B) {
	w := newWorld(b)
	const blocks = 64 << 20 / testBlock
	d := w.diskOf(w.backup(nil, blocks*testBlock, change{0, blocks, 1}).record.Run)
	random := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 4096)
	for b.Loop() {
		if _, err := d.ReadAt(p, random.Int64N(d.Size()-4096)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScatteredMap makes the map of a disk of 16 TiB in which 1,000 blocks
// changed, and counts the requests.
func BenchmarkScatteredMap(b *testing.B) {
	ctx := context.Background()
	const blocks, changed = 16 << 40 >> 16, 1000
	w := newWorld(b)
	build := func(base *format.MapRoot, deps []format.Dependency) (format.MapRoot, []format.Dependency) {
		a, err := w.begin(ctx, nil)
		if err != nil {
			b.Fatal(err)
		}
		m, err := blockmap.NewBuilder(base, blocks, blocks, w.repo.Nodes(testMachine), a.run.Sink())
		if err != nil {
			b.Fatal(err)
		}
		for i := range int64(changed) {
			if err := m.Set(ctx, blockmap.Span{First: i * (blocks / changed), Count: 1, Loc: format.Location{Run: a.run.ID(), Ordinal: uint32(i)}}); err != nil {
				b.Fatal(err)
			}
		}
		root, err := m.Finish(ctx)
		if err != nil {
			b.Fatal(err)
		}
		ref, err := a.run.Seal(ctx, deps)
		if err != nil {
			b.Fatal(err)
		}
		return root, []format.Dependency{{Run: a.run.ID(), Manifest: ref.Hash}}
	}
	root, deps := build(nil, nil)
	for b.Loop() {
		w.reopen()
		build(&root, deps)
	}
}
