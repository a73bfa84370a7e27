package prune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// look is one look at a machine.
type look struct {
	data    map[ident.RunID]*stock // what lies under the runs' data
	intents map[ident.RunID]*stock // intents and renewals
	tombs   map[ident.RunID]format.Standing
	listed  map[ident.RunID]struct{}       // runs whose slot is taken
	gone    map[ident.RunID]bool           // of these, forgotten for longer than the grace
	living  map[ident.RunID]*format.Record // points that are not gone
	hidden  int                            // of these, forgotten
	aborted map[ident.RunID]bool
	held    []ident.RunID
	bases   []ident.RunID // of held runs
	victims []Victim
}

// stock is what is listed of a run.
type stock struct {
	objects []object
	newest  time.Time // by the clock of the store
}

// object is one object of a run. There may be millions.
type object struct {
	kind   format.KeyKind
	number uint32 // the seq of a pack or a map object, the number of an intent
	bytes  int64
}

func (o object) key(machine ident.MachineName, run ident.RunID) string {
	k := format.Key{Kind: o.kind, Machine: machine, Run: run, Seq: o.number}
	if o.kind == format.KeyIntent {
		k.Seq, k.Number = 0, o.number
	}
	return k.String()
}

// look lists in the order that makes it safe, and finds out what may go.
func (m *machine) look(ctx context.Context) (*look, error) {
	l := &look{gone: map[ident.RunID]bool{}, living: map[ident.RunID]*format.Record{}, aborted: map[ident.RunID]bool{}}
	var err error
	if l.data, err = m.list(ctx, format.MachineDataPrefix(m.name), isDataKind); err != nil {
		return nil, err
	}
	if l.tombs, err = m.r.Tombstones(ctx, m.name); err != nil {
		return nil, err
	}
	if l.listed, err = m.listSlots(ctx); err != nil {
		return nil, err
	}
	isIntent := func(k format.KeyKind) bool { return k == format.KeyIntent }
	if l.intents, err = m.list(ctx, format.RunsPrefix(m.name), isIntent); err != nil {
		return nil, err
	}
	taken, err := m.arbitrate(ctx, l)
	if err != nil {
		return nil, err
	}
	if l.listed, err = m.listSlots(ctx); err != nil {
		return nil, err
	}
	for _, run := range taken {
		l.listed[run] = struct{}{}
	}
	if err := m.judge(ctx, l); err != nil {
		return nil, err
	}
	return l, m.choose(ctx, l)
}

// list gives the objects of some kinds under a prefix, by run.
func (m *machine) list(ctx context.Context, prefix string, wanted func(format.KeyKind) bool) (map[ident.RunID]*stock, error) {
	all := map[ident.RunID]*stock{}
	for info, err := range m.r.Store().List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		key, err := format.ParseKey(info.Key)
		if err != nil || !wanted(key.Kind) {
			continue
		}
		s := all[key.Run]
		if s == nil {
			s = &stock{}
			all[key.Run] = s
		}
		s.objects = append(s.objects, object{key.Kind, max(key.Seq, key.Number), info.Size})
		if key.Kind == format.KeyMap {
			m.r.NoteSize(m.name, key.Run, key.Seq, info.Size)
		}
		if info.Modified.After(s.newest) {
			s.newest = info.Modified
		}
	}
	return all, nil
}

func (m *machine) listSlots(ctx context.Context) (map[ident.RunID]struct{}, error) {
	all := map[ident.RunID]struct{}{}
	for info, err := range m.r.Store().List(ctx, format.PointsPrefix(m.name)) {
		if err != nil {
			return nil, fmt.Errorf("list points: %w", err)
		}
		if key, err := format.ParseKey(info.Key); err == nil && key.Kind == format.KeyPoint {
			all[key.Run] = struct{}{}
		}
	}
	return all, nil
}

// arbitrate decides what runs without a slot are: alive, and then they hold what they build on, or dead for so long that
// their slot is taken from them. It gives the runs whose slot is taken although it was not listed.
func (m *machine) arbitrate(ctx context.Context, l *look) (taken []ident.RunID, err error) {
	open := map[ident.RunID]time.Time{}
	for _, list := range []map[ident.RunID]*stock{l.data, l.intents} {
		for run, s := range list {
			if _, listed := l.listed[run]; !listed && !s.newest.Before(open[run]) {
				open[run] = s.newest
			}
		}
	}
	for _, run := range slices.SortedFunc(maps.Keys(open), ident.RunID.Compare) {
		state, err := m.state(ctx, run)
		if err == nil && state == repo.SlotAbsent && m.now.Sub(open[run]) >= format.RunAge {
			state, err = m.abort(ctx, run)
		}
		if err == nil && state == repo.SlotAbsent {
			err = m.hold(ctx, l, run)
		} else {
			taken = append(taken, run)
		}
		if err != nil {
			return nil, err
		}
	}
	return taken, nil
}

// state asks for a slot that was not listed.
func (m *machine) state(ctx context.Context, run ident.RunID) (repo.SlotState, error) {
	s, err := m.r.ReadSlot(ctx, m.name, run)
	if _, was := m.slots[run]; was && err == nil && s.State == repo.SlotAbsent {
		err = fmt.Errorf("point %s: %w", run, ErrVanished)
	}
	return s.State, err
}

// abort takes the slot of a run, where that can be done. Whatever the store answers, the slot decides: the run may have been
// quicker.
func (m *machine) abort(ctx context.Context, run ident.RunID) (repo.SlotState, error) {
	if !m.createOnly {
		return repo.SlotAbsent, nil
	}
	if !slices.Contains(m.report.Aborted, run) {
		m.report.Aborted = append(m.report.Aborted, run)
	}
	if m.o.DryRun {
		return repo.SlotAbsent, nil
	}
	doc, known, err := m.r.Machine(ctx, m.name)
	if err == nil && !known {
		err = fmt.Errorf("abort run %s: the machine's document is missing", run)
	}
	if err == nil {
		err = m.r.AbortRun(ctx, m.name, doc.ID, run, m.o.By)
	}
	if err != nil {
		return repo.SlotAbsent, err
	}
	return m.state(ctx, run)
}

// hold keeps a run and the points that it builds on. One that has written data and no intent builds on nothing.
func (m *machine) hold(ctx context.Context, l *look, run ident.RunID) error {
	l.held = append(l.held, run)
	s := l.intents[run]
	if s == nil {
		return nil
	}
	intent, err := m.r.Intent(ctx, m.name, run, s.objects[0].number)
	if errors.Is(err, store.ErrNotFound) {
		// The run may have ended meanwhile, and another pruner have been here.
		if state, ended := m.state(ctx, run); ended == nil && state != repo.SlotAbsent {
			return nil
		}
	}
	if err != nil {
		return err
	}
	for _, b := range intent.Bases {
		l.bases = append(l.bases, b.Run)
	}
	return nil
}

// judge reads the slots that count.
func (m *machine) judge(ctx context.Context, l *look) error {
	for run := range l.listed {
		tomb := l.tombs[run]
		if tomb.Set && m.now.Sub(tomb.Since) >= format.Grace {
			l.gone[run] = true
			continue
		}
		slot, err := m.slot(ctx, run)
		switch {
		case err != nil:
			return err
		case slot.State == repo.SlotAborted:
			// A store that replaces objects may yet get a record there.
			l.aborted[run] = m.createOnly
		default:
			l.living[run] = slot.Record
			if tomb.Set {
				l.hidden++
			}
		}
	}
	return nil
}

// slot reads what a slot holds. It must hold something.
func (m *machine) slot(ctx context.Context, run ident.RunID) (repo.Slot, error) {
	if s, known := m.slots[run]; known {
		return s, nil
	}
	s, err := m.r.ReadSlot(ctx, m.name, run)
	if err == nil && s.State == repo.SlotAbsent {
		err = fmt.Errorf("%s is listed or needed, and cannot be read: %w", format.PointKey(m.name, run), store.ErrNotFound)
	}
	if err != nil {
		return repo.Slot{}, err
	}
	m.slots[run] = s
	return s, nil
}

// choose finds out which objects nothing needs, of runs that are decided.
func (m *machine) choose(ctx context.Context, l *look) error {
	for run, s := range l.intents {
		if _, decided := l.listed[run]; decided {
			m.add(l, run, s, "its run has ended", nil)
		}
	}
	dead := func(run ident.RunID) bool { return l.gone[run] || l.aborted[run] }
	if slices.ContainsFunc(slices.Collect(maps.Keys(l.data)), dead) {
		if err := m.walk(ctx, l); err != nil {
			return err
		}
		for run, s := range l.data {
			switch {
			case l.gone[run]:
				m.add(l, run, s, "its point was forgotten on "+l.tombs[run].Since.UTC().Format(time.DateOnly), &m.reach)
			case l.aborted[run]:
				m.add(l, run, s, "its run was aborted", &m.reach)
			case l.living[run] != nil:
				m.add(l, run, s, "no manifest names it", &m.reach)
			}
		}
	}
	slices.SortFunc(l.victims, func(a, b Victim) int { return cmp.Or(a.rank-b.rank, cmp.Compare(a.Key, b.Key)) })
	return nil
}

// walk finds out what is needed: by points that are not gone, and by the bases of runs that are held.
func (m *machine) walk(ctx context.Context, l *look) error {
	for _, run := range slices.SortedFunc(maps.Keys(l.living), ident.RunID.Compare) {
		if err := m.reach.point(ctx, l.living[run]); err != nil {
			return err
		}
	}
	for _, base := range l.bases {
		s, err := m.slot(ctx, base)
		if err == nil && s.Record == nil {
			err = errors.New("its run was aborted")
		}
		if err != nil {
			return fmt.Errorf("point %s, on which a run builds: %w", base, err)
		}
		if err := m.reach.point(ctx, s.Record); err != nil {
			return err
		}
	}
	return nil
}

// add adds the objects of a run that nothing needs to the victims.
func (m *machine) add(l *look, run ident.RunID, s *stock, why string, needed *reach) {
	for _, o := range s.objects {
		if needed == nil || !needed.has(run, o) {
			l.victims = append(l.victims, Victim{Key: o.key(m.name, run), Bytes: o.bytes, Why: why, rank: o.rank()})
		}
	}
}

func isDataKind(k format.KeyKind) bool {
	return k == format.KeyPack || k == format.KeyMap || k == format.KeyManifest
}

// rank orders deletions: what a manifest names goes before it, and what tells of a run goes last.
func (o object) rank() int {
	switch o.kind {
	case format.KeyManifest:
		return rankManifest
	case format.KeyIntent:
		return rankIntent
	}
	return 0
}

const (
	rankManifest = 1
	rankIntent   = 2
)
