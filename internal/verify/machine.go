package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qbackup/qbackup/internal/cache"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// machine is the verification of one machine.
type machine struct {
	*verification
	name  ident.MachineName
	id    ident.MachineID // zero when its document cannot be read; then it is not compared
	stock *stock

	mu          sync.Mutex
	points      []*point // that stand and whose records can be read, ascending
	lostPoints  int      // whose records cannot be read
	forgotten   map[ident.RunID]bool
	aborted     map[ident.RunID]bool
	nextVerdict map[ident.RunID]uint32
	condemned   map[string]bool // keys that an earlier verdict names

	runs      map[ident.RunID]*runState // that points need
	lostPacks map[packID]finding        // of which no block can be read
	badMaps   map[mapID]finding         // missing or of another size
	badFrames map[packID][]badFrame
	indexes   *cache.Cache[packID, indexResult]
}

// packID and mapID name objects of a machine's runs.
type packID struct {
	run ident.RunID
	seq uint32
}

type mapID struct {
	run ident.RunID
	seq uint32
}

// point is a point that stands.
type point struct {
	record   *format.Record
	manifest *format.Manifest // nil with bad
	bad      *finding         // why the point cannot be opened
	needs    map[ident.RunID]need
	mask     uint64 // the bits of all runs in needs, see outcome
}

func (p *point) id() pointID     { return pointID{p.record.Machine, p.record.Run} }
func (p *point) time() time.Time { return p.record.Time }

// need is a run that a point refers to. bad says why the point cannot use the run's manifest.
type need struct {
	run *runState
	bad *finding
}

// runState is a run whose data some point needs.
type runState struct {
	run      ident.RunID
	number   int  // counts the runs of the machine
	living   bool // its own point stands: everything that its manifest names must be there
	manifest *format.Manifest
	hash     format.Hash // of the manifest
	bytes    int64
	bad      *finding // why there is no manifest; noted only when the manifest is missed

	// By the manifest's order: what maps refer to.
	packUsed, mapUsed []atomic.Bool
}

func (s *runState) bit() uint64 { return 1 << (s.number % 64) }

// machine verifies one machine.
func (v *verification) machine(ctx context.Context, name ident.MachineName, s *stock) error {
	m := &machine{
		verification: v, name: name, stock: s,
		forgotten: map[ident.RunID]bool{}, aborted: map[ident.RunID]bool{}, nextVerdict: map[ident.RunID]uint32{}, condemned: map[string]bool{},
		runs: map[ident.RunID]*runState{}, lostPacks: map[packID]finding{}, badMaps: map[mapID]finding{}, badFrames: map[packID][]badFrame{},
		indexes: cache.New[packID](indexCacheBytes, indexResult.sizeBytes),
	}
	steps := []func(context.Context) error{m.documents, m.manifests, m.sizes, m.walkAll, m.unusedIndexes, m.mapObjects}
	if v.o.Data {
		steps = append(steps, m.packs)
	}
	steps = append(steps, m.attribute)
	if v.o.Record {
		steps = append(steps, m.record)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	m.strays()
	v.points += len(m.points) + m.lostPoints
	return nil
}

// manifests reads the manifests of all points, then those of the runs that these depend on.
func (m *machine) manifests(ctx context.Context) error {
	slices.SortFunc(m.points, func(a, b *point) int {
		return cmp.Or(a.time().Compare(b.time()), a.record.Run.Compare(b.record.Run))
	})
	var own []*runState
	for _, p := range m.points {
		own = append(own, m.addRun(p.record.Run, true))
	}
	if err := inParallel(ctx, m.o.Workers, slices.Values(own), m.readManifest); err != nil {
		return err
	}
	var others []*runState
	for _, p := range m.points {
		if m.takeManifest(p); p.bad != nil {
			continue
		}
		for _, d := range p.manifest.Runs {
			if m.runs[d.Run] == nil {
				others = append(others, m.addRun(d.Run, false))
			}
		}
	}
	if err := inParallel(ctx, m.o.Workers, slices.Values(others), m.readManifest); err != nil {
		return err
	}
	for _, p := range m.points {
		m.joinNeeds(p)
	}
	return nil
}

func (m *machine) addRun(run ident.RunID, living bool) *runState {
	s := &runState{run: run, number: len(m.runs), living: living}
	m.runs[run] = s
	return s
}

// readManifest fills in a run's manifest, or why there is none.
func (m *machine) readManifest(ctx context.Context, work *scratch, s *runState) error {
	key := format.ManifestKey(m.name, s.run)
	listed := m.stock.runs[s.run]
	if listed != nil {
		m.expect(max(listed.manifestBytes, 0))
	}
	problem, err := m.twice(key, func() error {
		b, err := m.readWhole(ctx, key, format.MaxObjectBytes)
		if err != nil {
			return err
		}
		s.bytes, s.hash = int64(len(b)), format.SumHash(b)
		s.manifest, err = format.ParseManifest(b, m.identity(s.run))
		return err
	})
	if err != nil {
		return err
	}
	if problem != "" {
		s.manifest = nil
		f := wholeObject(key, "%s", problem)
		s.bad = &f
		// One that is gone is damage only when a map is found to need it.
		if s.living || listed != nil && listed.manifestBytes >= 0 {
			m.found.add(f)
		}
		return nil
	}
	m.looked(s.bytes)
	s.packUsed, s.mapUsed = make([]atomic.Bool, len(s.manifest.Packs)), make([]atomic.Bool, len(s.manifest.Maps))
	return nil
}

// takeManifest gives a point its own manifest, when it is the one that the record means.
func (m *machine) takeManifest(p *point) {
	s, want := m.runs[p.record.Run], p.record.Manifest
	p.bad = s.bad
	if p.bad == nil && (s.hash != want.Hash || s.bytes != want.Bytes) {
		f := wholeObject(format.ManifestKey(m.name, s.run), "its hash or length is not the one in the record %s", format.PointKey(m.name, s.run))
		s.bad, p.bad, s.manifest = &f, &f, nil
		m.found.add(f)
	}
	p.manifest = s.manifest
}

// joinNeeds finds the runs that a point may refer to.
func (m *machine) joinNeeds(p *point) {
	if p.bad != nil {
		return
	}
	own := m.runs[p.record.Run]
	p.needs, p.mask = map[ident.RunID]need{own.run: {run: own}}, own.bit()
	for _, d := range p.manifest.Runs {
		s := m.runs[d.Run]
		n := need{run: s, bad: s.bad}
		if n.bad == nil && s.hash != d.Manifest {
			f := wholeObject(format.ManifestKey(m.name, s.run), "its hash is not the one in %s", format.ManifestKey(m.name, p.record.Run))
			n.bad = &f
			m.found.add(f)
		}
		p.needs[d.Run] = n
		p.mask |= s.bit()
	}
}

// strays makes remarks of data that belongs to no point.
func (m *machine) strays() {
	var runs, objects int
	var bytes int64
	var names []string
	for run, listed := range m.stock.runs {
		if s := m.runs[run]; s != nil {
			m.unnamed(s, listed)
			continue
		}
		n, size := listed.total()
		runs, objects, bytes = runs+1, objects+n, bytes+size
		names = append(names, run.String())
	}
	if runs == 0 {
		return
	}
	slices.Sort(names)
	if len(names) > maxRunsNamed {
		names = append(names[:maxRunsNamed], "...")
	}
	m.remarks.add("belong to no point: their runs are under way, died, or were forgotten",
		fmt.Sprintf("%d objects with %d bytes of %d runs of machine %s (%v)", objects, bytes, runs, m.name, names))
}

// unnamed makes a remark of objects that lie beside a run's own and that its manifest does not name.
func (m *machine) unnamed(s *runState, listed *runStock) {
	if s.manifest == nil {
		return
	}
	n := 0
	for _, o := range listed.packs {
		if _, ok := s.manifest.Pack(o.seq); !ok {
			n++
		}
	}
	for _, o := range listed.maps {
		if _, ok := s.manifest.Map(o.seq); !ok {
			n++
		}
	}
	if n > 0 {
		m.remarks.add("lie under "+format.DataPrefix(m.name, s.run)+" and are not named in the manifest: they belong to no point", fmt.Sprintf("%d objects", n))
	}
}
