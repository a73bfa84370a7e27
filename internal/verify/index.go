package verify

import (
	"context"
	"fmt"
	"iter"

	"github.com/qbackup/qbackup/internal/repo/format"
)

// indexResult is the index of a pack, or why the pack is lost.
type indexResult struct {
	index *format.PackIndex
	bad   *finding
}

func (x indexResult) sizeBytes() int64 {
	if x.index == nil {
		return 100
	}
	return 100 + x.index.SizeBytes()
}

// index gives the index of a pack as the store has it, checked against the manifest.
func (m *machine) index(ctx context.Context, s *runState, e format.PackEntry) (*format.PackIndex, *finding, error) {
	id := packID{s.run, e.Seq}
	x, err := m.indexes.Get(ctx, id, func() (indexResult, error) {
		m.mu.Lock()
		f, lost := m.lostPacks[id]
		m.mu.Unlock()
		if lost {
			return indexResult{bad: &f}, nil
		}
		return m.readIndex(ctx, id, e)
	})
	return x.index, x.bad, err
}

func (m *machine) readIndex(ctx context.Context, id packID, e format.PackEntry) (indexResult, error) {
	key := format.PackKey(m.name, id.run, id.seq)
	tail := make([]byte, e.Bytes-int64(e.IndexOffset))
	var x *format.PackIndex
	problem, err := m.twice(key, func() error {
		err := m.readRange(ctx, key, int64(e.IndexOffset), tail)
		if err == nil {
			x, err = format.ParsePackIndex(tail, e, m.r.BlockBytes())
		}
		return err
	})
	if err != nil {
		return indexResult{}, fmt.Errorf("read the index of %s: %w", key, err)
	}
	if problem != "" {
		f := finding{key, int64(e.IndexOffset), int64(len(tail)), problem}
		m.lose(id, f)
		return indexResult{bad: &f}, nil
	}
	if !m.o.Data { // else the pack counts when it is read whole
		m.expect(int64(len(tail)))
		m.looked(int64(len(tail)))
	}
	return indexResult{index: x}, nil
}

// lose notes that no block of a pack can be read.
func (m *machine) lose(id packID, f finding) {
	m.found.add(f)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lostPacks[id] = f
}

// neededPack is a pack that some point needs.
type neededPack struct {
	run   *runState
	entry format.PackEntry
}

// neededPacks gives the packs of all points, but for those that are lost already.
func (m *machine) neededPacks(also func(s *runState, used bool) bool) iter.Seq[neededPack] {
	return func(yield func(neededPack) bool) {
		for _, s := range m.runs {
			if s.manifest == nil {
				continue
			}
			for i, e := range s.manifest.Packs {
				m.mu.Lock()
				_, lost := m.lostPacks[packID{s.run, e.Seq}]
				m.mu.Unlock()
				if !lost && also(s, s.packUsed[i].Load()) && !yield(neededPack{s, e}) {
					return
				}
			}
		}
	}
}

// unusedIndexes reads the indexes that the walk did not need: those of packs that only say what is zero.
func (m *machine) unusedIndexes(ctx context.Context) error {
	if m.o.Data {
		return nil // these packs will be read whole
	}
	unused := m.neededPacks(func(s *runState, used bool) bool { return s.living && !used })
	return inParallel(ctx, m.o.Workers, unused, func(ctx context.Context, _ *scratch, p neededPack) error {
		_, _, err := m.index(ctx, p.run, p.entry)
		return err
	})
}
