package main

import (
	"context"
	"errors"
	"time"

	"github.com/qbackup/qbackup/configs"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/prune"
	"github.com/qbackup/qbackup/internal/schedule"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
)

const (
	// pruneName is how the service calls pruning among its machines, none of which can have this name.
	pruneName = "(prune)"
	// pruneJitter spreads the prunes of hosts that have one schedule.
	pruneJitter = time.Hour
)

// pruneSchedule says when this host prunes; nil: never.
func (p *program) pruneSchedule() *schedule.Schedule {
	text := p.configured().Prune.Schedule
	if text == configs.PruneOff || text == "" {
		return nil
	}
	s, err := schedule.Parse(text)
	if err != nil {
		return nil // the configuration was checked
	}
	return s
}

// pruneDue prunes in a run of all machines, when the time has come.
func (p *program) pruneDue(ctx context.Context, f *fleet.Fleet, machines []fleet.Machine) error {
	s := p.pruneSchedule()
	if s == nil || len(machines) == 0 || ctx.Err() != nil {
		return nil
	}
	past := f.Results().Overall().Prune
	d := s.Due(schedule.Past{Last: past.Scheduled, Unfinished: past.Unfinished(), Boot: state.BootTime()}, time.Now(), schedule.Delay(hostname(), pruneJitter))
	if !d.Due {
		return nil
	}
	if err := pruneBegun(f, time.Now()); err != nil {
		return err
	}
	return p.pruneMachines(ctx, f, machines)
}

// pruneBegun writes down when pruning was begun because it was due.
func pruneBegun(f *fleet.Fleet, at time.Time) error {
	return f.Results().UpdateOverall(func(o *state.Overall) { o.Prune.Scheduled = at })
}

// pruneMachines prunes what this host backs up, and says what went wrong. Keys that must not delete are as somebody wanted
// them.
func (p *program) pruneMachines(ctx context.Context, f *fleet.Fleet, machines []fleet.Machine) error {
	names := make([]ident.MachineName, len(machines))
	for i, m := range machines {
		names[i] = m.Name
	}
	err := f.Prune(ctx, names, func(r prune.MachineReport) {
		if r.Err != nil && !errors.Is(r.Err, store.ErrDenied) && ctx.Err() == nil {
			p.failure("", r.Err)
		}
		if r.Deleted {
			p.verbosely("%s: %d objects that nothing needs were deleted (%s)", r.Machine, len(r.Victims), size(r.Bytes()))
		}
	})
	if errors.Is(err, store.ErrDenied) {
		p.verbosely("nothing was pruned: %v", err)
		return nil
	}
	return err
}
