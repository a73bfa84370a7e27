package verify

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"

	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// wanted is an object that a manifest names.
type wanted struct {
	run   *runState
	kind  format.KeyKind // KeyPack or KeyMap
	seq   uint32
	bytes int64
}

func (m *machine) keyOf(w wanted) string {
	if w.kind == format.KeyPack {
		return format.PackKey(m.name, w.run.run, w.seq)
	}
	return format.MapKey(m.name, w.run.run, w.seq)
}

// sizes compares what is listed with what the manifests name. What seems to be missing or of another size is asked for by
// itself: it may have been written after its part of the listing was made.
func (m *machine) sizes(ctx context.Context) error {
	return inParallel(ctx, m.o.Workers, m.suspects(), func(ctx context.Context, _ *scratch, w wanted) error {
		key := m.keyOf(w)
		info, err := m.store.Stat(ctx, key)
		problem, damaged := judge(err)
		switch {
		case err != nil && !damaged:
			return fmt.Errorf("look for %s: %w", key, err)
		case err == nil && info.Size == w.bytes:
			return nil
		case err == nil:
			problem = fmt.Sprintf("it has %d bytes, its manifest says %d", info.Size, w.bytes)
		}
		f := wholeObject(key, "%s", problem)
		// Of a run whose own point was forgotten, only what other points use must be there: the walk finds out.
		if w.run.living {
			m.found.add(f)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if w.kind == format.KeyPack {
			m.lostPacks[packID{w.run.run, w.seq}] = f
		} else {
			m.badMaps[mapID{w.run.run, w.seq}] = f
		}
		return nil
	})
}

// suspects gives the named objects that are not listed as they should be.
func (m *machine) suspects() iter.Seq[wanted] {
	return func(yield func(wanted) bool) {
		for w := range m.named() {
			var list []object
			if listed := m.stock.runs[w.run.run]; listed != nil {
				list = listed.maps
				if w.kind == format.KeyPack {
					list = listed.packs
				}
			}
			i := sort.Search(len(list), func(i int) bool { return list[i].seq >= w.seq })
			if i < len(list) && list[i] == (object{w.seq, w.bytes}) {
				continue
			}
			if !yield(w) {
				return
			}
		}
	}
}

// named gives every object that a manifest names, in no order of runs.
func (m *machine) named() iter.Seq[wanted] {
	return func(yield func(wanted) bool) {
		for _, s := range m.runs {
			if s.manifest == nil {
				continue
			}
			for _, e := range s.manifest.Maps {
				if !yield(wanted{s, format.KeyMap, e.Seq, e.Bytes}) {
					return
				}
			}
			for _, e := range s.manifest.Packs {
				if !yield(wanted{s, format.KeyPack, e.Seq, e.Bytes}) {
					return
				}
			}
		}
	}
}

// readWhole reads a whole object of at most limit bytes.
func (v *verification) readWhole(ctx context.Context, key string, limit int64) ([]byte, error) {
	b, err := store.ReadAll(ctx, v.store, key, limit)
	if err != nil {
		return nil, fmt.Errorf("read whole object: %w", err)
	}
	return b, nil
}

// neededMap is a map object that some point needs.
type neededMap struct {
	run   *runState
	entry format.MapEntry
}

// mapObjects reads the map objects of all points whole, also the nodes that only older points had. Where the walk found no
// damaged node, the object as a whole is named.
func (m *machine) mapObjects(ctx context.Context) error {
	var need []neededMap
	largest := int64(1)
	for _, s := range m.runs {
		if s.manifest == nil {
			continue
		}
		for i, e := range s.manifest.Maps {
			if !s.living && !s.mapUsed[i].Load() {
				continue
			}
			if f, bad := m.badMaps[mapID{s.run, e.Seq}]; bad {
				m.found.add(f)
				continue
			}
			need = append(need, neededMap{s, e})
			largest = max(largest, e.Bytes)
			m.expect(e.Bytes)
		}
	}
	workers := min(int64(m.o.Workers), max(mapMemoryBytes/largest, 1))
	return inParallel(ctx, int(workers), slices.Values(need), func(ctx context.Context, work *scratch, n neededMap) error {
		key := format.MapKey(m.name, n.run.run, n.entry.Seq)
		problem, err := m.twice(key, func() error {
			b := work.whole(n.entry.Bytes, largest)
			if err := m.readRange(ctx, key, 0, b); err != nil {
				return err
			}
			if format.SumHash(b) == n.entry.Hash {
				return nil
			}
			return errors.Join(explainMap(b, m.identity(n.run.run), n.entry.Seq), fmt.Errorf("its hash is not the one in its manifest: %w", format.ErrCorrupt))
		})
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		m.looked(n.entry.Bytes)
		if problem != "" && !m.found.has(key) {
			m.found.add(wholeObject(key, "%s", problem))
		}
		return nil
	})
}

// explainMap says what is wrong with a map object, nil when only its hash is.
func explainMap(b []byte, at format.Identity, seq uint32) error {
	h, err := format.ParseMapHeader(b)
	if err == nil {
		err = h.Check(at, seq)
	}
	return err
}
