package repo

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// Seal stores the last map nodes and the manifest, which names all packs and map
// objects and the other runs (deps) that the maps refer to, and lists the run's
// data back: each object must be there with its size, or ErrIncomplete. It gives
// the reference for the record.
func (run *Run) Seal(ctx context.Context, deps []format.Dependency) (format.Reference, error) {
	run.mu.Lock()
	defer run.mu.Unlock()
	if run.manifest != nil {
		return format.Reference{}, fmt.Errorf("run %s is sealed: %w", run.ID(), format.ErrInvalid)
	}
	if err := run.flushMap(ctx); err != nil {
		return format.Reference{}, err
	}
	others := slices.DeleteFunc(slices.Clone(deps), func(d format.Dependency) bool { return d.Run == run.ID() })
	others, err := JoinDependencies(others)
	if err != nil {
		return format.Reference{}, err
	}
	m := &format.Manifest{
		Repository: run.identity.Repository, MachineID: run.identity.MachineID, Run: run.ID(),
		Packs: slices.SortedFunc(maps.Values(run.packs), func(a, b format.PackEntry) int { return cmp.Compare(a.Seq, b.Seq) }),
		Maps:  run.maps, Runs: others,
	}
	for _, p := range m.Packs {
		if p.Bytes == 0 {
			return format.Reference{}, fmt.Errorf("a pack of run %s was not stored: %w", run.ID(), format.ErrInvalid)
		}
	}
	body, err := format.AppendManifest(nil, m)
	if err != nil {
		return format.Reference{}, fmt.Errorf("make the manifest of run %s: %w", run.ID(), err)
	}
	if err := send(ctx, run.r.store, format.ManifestKey(run.identity.Machine, run.ID()), body, store.Metadata); err != nil {
		return format.Reference{}, fmt.Errorf("store manifest: %w", err)
	}
	if err := run.listBack(ctx, m, int64(len(body))); err != nil {
		return format.Reference{}, err
	}
	run.r.local.write(run.r.localName(run.identity.Machine, run.ID(), manifestFile), body)
	run.manifest, run.sealed = m, format.Reference{Bytes: int64(len(body)), Hash: format.SumHash(body)}
	return run.sealed, nil
}

// listBack compares what the store lists with what it confirmed (I1).
func (run *Run) listBack(ctx context.Context, m *format.Manifest, manifestBytes int64) error {
	want := objectSizes(run.identity.Machine, m)
	want[format.ManifestKey(run.identity.Machine, run.ID())] = manifestBytes
	prefix := format.DataPrefix(run.identity.Machine, run.ID())
	for info, err := range run.r.store.List(ctx, prefix) {
		if err != nil {
			return fmt.Errorf("list back run %s: %w", run.ID(), err)
		}
		if size, ok := want[info.Key]; ok && size == info.Size {
			delete(want, info.Key)
		}
	}
	if len(want) == 0 {
		return nil
	}
	missing := slices.Sorted(maps.Keys(want))
	more := ""
	if n := len(missing); n > 4 {
		missing, more = missing[:4], fmt.Sprintf(" and %d more", n-4)
	}
	return fmt.Errorf("missing or of another size: %s%s: %w", strings.Join(missing, ", "), more, ErrIncomplete)
}

// objectSizes gives the keys and sizes of the packs and map objects of a manifest.
func objectSizes(machine ident.MachineName, m *format.Manifest) map[string]int64 {
	sizes := make(map[string]int64, len(m.Packs)+len(m.Maps)+1)
	for _, p := range m.Packs {
		sizes[format.PackKey(machine, m.Run, p.Seq)] = p.Bytes
	}
	for _, e := range m.Maps {
		sizes[format.MapKey(machine, m.Run, e.Seq)] = e.Bytes
	}
	return sizes
}
