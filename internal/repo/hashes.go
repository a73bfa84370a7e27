package repo

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// Hashes tells the hash of a stored block; false when it is not known, or when the
// block's pack is not to be relied on.
type Hashes interface {
	BlockHash(ctx context.Context, loc format.Location) (format.BlockHash, bool, error)
}

// CachedHashes tells hashes from the local cache of pack indexes alone: it makes no
// request. deps are the runs that may be asked about, such as Point.Dependencies.
// Packs in without are not relied on; nil is none.
func (r *Repository) CachedHashes(machine ident.MachineName, deps []format.Dependency, without *PackSet) Hashes {
	return newLookup(r, machine, deps, without, false)
}

// FetchedHashes tells hashes from the local cache, and fetches the indexes that it
// does not have. A manifest or index that is damaged is an error.
func (r *Repository) FetchedHashes(machine ident.MachineName, deps []format.Dependency, without *PackSet) Hashes {
	return newLookup(r, machine, deps, without, true)
}

// lookup is safe for parallel use.
type lookup struct {
	r       *Repository
	machine ident.MachineName
	deps    map[ident.RunID]format.Hash
	without *PackSet
	fetch   bool
}

func newLookup(r *Repository, machine ident.MachineName, deps []format.Dependency, without *PackSet, fetch bool) *lookup {
	l := &lookup{r: r, machine: machine, deps: make(map[ident.RunID]format.Hash, len(deps)), without: without, fetch: fetch}
	for _, d := range deps {
		l.deps[d.Run] = d.Manifest
	}
	return l
}

// BlockHash implements Hashes.
func (l *lookup) BlockHash(ctx context.Context, loc format.Location) (format.BlockHash, bool, error) {
	hash, ok := l.deps[loc.Run]
	if !ok || l.without.Has(loc.Run, loc.Pack) {
		return format.BlockHash{}, false, nil
	}
	x, err := l.index(ctx, loc, hash)
	if err != nil {
		return format.BlockHash{}, false, fmt.Errorf("learn the hash of block %s: %w", loc, err)
	}
	if x == nil {
		return format.BlockHash{}, false, nil
	}
	h, ok := x.Hash(loc.Ordinal)
	return h, ok, nil
}

func (l *lookup) index(ctx context.Context, loc format.Location, hash format.Hash) (*format.PackIndex, error) {
	if !l.fetch {
		m := l.r.knownManifest(l.machine, loc.Run, hash)
		if m == nil {
			return nil, nil
		}
		e, ok := m.Pack(loc.Pack)
		if !ok {
			return nil, nil
		}
		return l.r.knownIndex(l.machine, loc.Run, e), nil
	}
	m, err := l.r.manifest(ctx, l.machine, loc.Run, hash)
	if err != nil {
		return nil, err
	}
	e, err := entryOf(m, l.machine, loc.Run, loc.Pack)
	if err != nil {
		return nil, err
	}
	return l.r.packIndex(ctx, l.machine, loc.Run, e)
}

// PackSet is a set of packs, of runs with all their packs, and of runs some of whose map nodes cannot be read. A nil set
// is empty.
type PackSet struct {
	packs map[packID]struct{}
	runs  map[ident.RunID]struct{}
	maps  map[ident.RunID]struct{}
}

type packID struct {
	run ident.RunID
	seq uint32
}

// Has reports whether a pack is in the set.
func (s *PackSet) Has(run ident.RunID, seq uint32) bool {
	if s == nil {
		return false
	}
	if _, all := s.runs[run]; all {
		return true
	}
	_, ok := s.packs[packID{run, seq}]
	return ok
}

// Empty reports whether nothing is in the set.
func (s *PackSet) Empty() bool { return s == nil || len(s.packs)+len(s.runs)+len(s.maps) == 0 }

// Touches reports whether anything of a run is in the set.
func (s *PackSet) Touches(run ident.RunID) bool {
	if s.Empty() {
		return false
	}
	for p := range s.packs {
		if p.run == run {
			return true
		}
	}
	_, all := s.runs[run]
	return all || s.HasMaps(run)
}

// HasMaps reports whether map nodes of a run cannot be read. Which ones shows when a map is walked.
func (s *PackSet) HasMaps(run ident.RunID) bool {
	if s == nil {
		return false
	}
	_, ok := s.maps[run]
	return ok
}

func (s *PackSet) add(run ident.RunID, seq uint32) {
	if s.packs == nil {
		s.packs = map[packID]struct{}{}
	}
	s.packs[packID{run, seq}] = struct{}{}
}

func (s *PackSet) addMaps(run ident.RunID) {
	if s.maps == nil {
		s.maps = map[ident.RunID]struct{}{}
	}
	s.maps[run] = struct{}{}
}

func (s *PackSet) addRun(run ident.RunID) {
	if s.runs == nil {
		s.runs = map[ident.RunID]struct{}{}
	}
	s.runs[run] = struct{}{}
}

// DependencyListed lists the data of each run and gives the packs that are missing
// or have another size than their manifest says; all packs of a run whose manifest
// is damaged. Blocks in them must be stored again.
func (r *Repository) DependencyListed(ctx context.Context, machine ident.MachineName, deps []format.Dependency) (*PackSet, error) {
	bad := &PackSet{}
	for _, d := range deps {
		m, err := r.manifest(ctx, machine, d.Run, d.Manifest)
		if errors.Is(err, ErrDamaged) {
			bad.addRun(d.Run)
			continue
		}
		if err != nil {
			return nil, err
		}
		sizes := make(map[uint32]int64, len(m.Packs))
		for info, err := range r.store.List(ctx, format.DataPrefix(machine, d.Run)) {
			if err != nil {
				return nil, fmt.Errorf("list data of run %s: %w", d.Run, err)
			}
			if key, err := format.ParseKey(info.Key); err == nil && key.Kind == format.KeyPack {
				sizes[key.Seq] = info.Size
			}
		}
		for _, p := range m.Packs {
			if sizes[p.Seq] != p.Bytes {
				bad.add(d.Run, p.Seq)
			}
		}
	}
	return bad, nil
}

// Condemn adds what verifications of the machine's points found damaged: packs, map
// objects, and with a manifest all packs of its run. A verdict that cannot be parsed
// names nothing.
func (r *Repository) Condemn(ctx context.Context, machine ident.MachineName, bad *PackSet) error {
	for info, err := range r.store.List(ctx, format.VerdictsPrefix(machine)) {
		if err != nil {
			return fmt.Errorf("list verdicts of %s: %w", machine, err)
		}
		key, err := format.ParseKey(info.Key)
		if err != nil {
			continue
		}
		b, err := store.ReadAll(ctx, r.store, info.Key, format.MaxDocumentBytes)
		if err != nil {
			return fmt.Errorf("read verdict: %w", err)
		}
		v, err := format.ParseVerdict(b, r.identity(machine, ident.MachineID{}, key.Run), key.Number)
		if err != nil {
			continue
		}
		for _, f := range v.Damage {
			bad.condemn(machine, f.Key)
		}
	}
	return nil
}

// condemn adds an object that a verdict on a machine's run names.
func (s *PackSet) condemn(machine ident.MachineName, object string) {
	key, err := format.ParseKey(object)
	if err != nil || key.Machine != machine {
		return
	}
	switch key.Kind {
	case format.KeyPack:
		s.add(key.Run, key.Seq)
	case format.KeyMap:
		s.addMaps(key.Run)
	case format.KeyManifest:
		s.addRun(key.Run)
	}
}
