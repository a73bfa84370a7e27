package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/store/probe"
)

// Options of Run.
type Options struct {
	Machines []ident.MachineName // nil: all
	DryRun   bool                // deletes nothing, and takes no slot
	By       string              // whom aborts name
	// Ended is told of each machine when it is done; nil: nobody is. Calls do not overlap.
	Ended func(MachineReport)
}

// machinesAtOnce bounds the machines that are looked at in parallel.
const machinesAtOnce = 4

// deleteBatch is how many objects are deleted with one call of the store.
const deleteBatch = 1000

// ErrVanished: a point was there at the first look and not at the second, and nobody has forgotten it.
var ErrVanished = errors.New("it has vanished without having been forgotten; nothing was deleted, see what else writes to the store")

// ErrSomeFailed: some machines could not be looked at; nothing of theirs was deleted.
var ErrSomeFailed = errors.New("not everything could be pruned")

// someFailed is ErrSomeFailed with the reasons.
type someFailed []error

// Error says no reason: they were reported machine by machine.
func (someFailed) Error() string { return ErrSomeFailed.Error() }

// Unwrap finds ErrSomeFailed and the reasons.
func (e someFailed) Unwrap() []error { return append([]error{ErrSomeFailed}, e...) }

// Victim is an object that is deleted.
type Victim struct {
	Key   string `json:"key"`
	Bytes int64  `json:"bytes"`
	Why   string `json:"why"`

	rank int // see object.rank
}

// MachineReport is what became of one machine.
type MachineReport struct {
	Machine   ident.MachineName
	Points    int // that stand
	Forgotten int // that can still be brought back
	// Oldest and Newest are the points in time of those that stand.
	Oldest, Newest time.Time
	Held           []ident.RunID // without a slot: under way, or dead for less than format.RunAge
	Aborted        []ident.RunID // whose slot was taken now, or would be
	// StoredBytes and StoredObjects are what the machine's data takes afterwards.
	StoredBytes   int64
	StoredObjects int
	Victims       []Victim // what was deleted, or would be
	Deleted       bool     // false with DryRun, and after an error
	Err           error    // why nothing, or not everything, was deleted
}

// Bytes is the size of the victims.
func (m MachineReport) Bytes() (n int64) {
	for _, v := range m.Victims {
		n += v.Bytes
	}
	return n
}

// Run looks at machines and deletes what nothing needs. A machine that cannot be looked at is left alone, and reported with
// its error; the error of Run is then ErrSomeFailed and what these are.
func Run(ctx context.Context, r *repo.Repository, o Options) ([]MachineReport, error) {
	if d := r.Descriptor(); d.CheckWrite() != nil {
		return nil, fmt.Errorf("%w: %w; use a newer qbackup", repo.ErrFormat, d.CheckWrite())
	}
	machines := o.Machines
	if machines == nil {
		var err error
		if machines, err = r.Machines(ctx); err != nil {
			return nil, err
		}
	}
	now, createOnly, clock, err := probe.Clock(ctx, r.Store())
	if err != nil {
		return nil, err
	}
	reports := make([]MachineReport, len(machines))
	ended := make(chan MachineReport)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(machinesAtOnce)
	go func() {
		defer close(ended)
		for i, name := range machines {
			group.Go(func() error {
				m := &machine{r: r, name: name, o: o, now: now, createOnly: createOnly, slots: map[ident.RunID]repo.Slot{}}
				reports[i] = m.prune(groupCtx)
				ended <- reports[i]
				return nil
			})
		}
		_ = group.Wait() // no function fails
	}()
	var failed someFailed
	for report := range ended {
		if report.Err != nil {
			failed = append(failed, report.Err)
		}
		if o.Ended != nil {
			o.Ended(report)
		}
	}
	if err := errors.Join(ctx.Err(), r.Store().Delete(context.WithoutCancel(ctx), []string{clock})); err != nil {
		return reports, errors.Join(err, errors.Join(failed...))
	}
	if len(failed) > 0 {
		return reports, failed
	}
	return reports, nil
}

// machine is the work on one machine.
type machine struct {
	r          *repo.Repository
	name       ident.MachineName
	o          Options
	now        time.Time // by the clock of the store, from before the first look
	createOnly bool
	slots      map[ident.RunID]repo.Slot // that were read: a slot that is taken never changes
	reach      reach
	report     MachineReport
}

// prune looks twice and deletes what both looks would delete.
func (m *machine) prune(ctx context.Context) MachineReport {
	m.report.Machine = m.name
	m.reach = newReach(m.r, m.name)
	m.report.Err = m.twice(ctx)
	return m.report
}

func (m *machine) twice(ctx context.Context) error {
	first, err := m.look(ctx)
	if err != nil {
		return fmt.Errorf("machine %s: %w", m.name, err)
	}
	m.count(first)
	if len(first.victims) == 0 || m.o.DryRun {
		m.report.Victims = first.victims
		return nil
	}
	second, err := m.look(ctx)
	if err != nil {
		return fmt.Errorf("machine %s, at the second look: %w", m.name, err)
	}
	for run := range first.living {
		if second.living[run] == nil && !second.gone[run] {
			return fmt.Errorf("machine %s, point %s: %w", m.name, run, ErrVanished)
		}
	}
	m.count(second)
	return m.remove(ctx, intersect(first.victims, second.victims))
}

// count notes what a look has found.
func (m *machine) count(l *look) {
	r := &m.report
	r.Points, r.Forgotten, r.Held = len(l.living)-l.hidden, l.hidden, l.held
	r.Oldest, r.Newest = time.Time{}, time.Time{}
	for run, record := range l.living {
		if l.tombs[run].Set {
			continue
		}
		if r.Oldest.IsZero() || record.Time.Before(r.Oldest) {
			r.Oldest = record.Time
		}
		if record.Time.After(r.Newest) {
			r.Newest = record.Time
		}
	}
	r.StoredBytes, r.StoredObjects = 0, 0
	for _, d := range l.data {
		for _, o := range d.objects {
			r.StoredBytes += o.bytes
			r.StoredObjects++
		}
	}
}

// remove deletes, packs and map objects before manifests before intents.
func (m *machine) remove(ctx context.Context, victims []Victim) error {
	for batch := range slices.Chunk(victims, deleteBatch) {
		keys := make([]string, len(batch))
		for i, v := range batch {
			keys[i] = v.Key
		}
		if err := m.r.Store().Delete(ctx, keys); err != nil {
			return fmt.Errorf("machine %s: delete: %w", m.name, err)
		}
		m.report.Victims = append(m.report.Victims, batch...)
		for _, v := range batch {
			if v.rank < rankIntent {
				m.report.StoredBytes -= v.Bytes
				m.report.StoredObjects--
			}
		}
	}
	m.report.Deleted = true
	return nil
}

// intersect gives the victims of the first look that are also those of the second.
func intersect(first, second []Victim) []Victim {
	again := make(map[string]bool, len(second))
	for _, v := range second {
		again[v.Key] = true
	}
	return slices.DeleteFunc(first, func(v Victim) bool { return !again[v.Key] })
}
