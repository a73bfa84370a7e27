package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/prune"
	"github.com/qbackup/qbackup/internal/retention"
	"github.com/qbackup/qbackup/internal/state"
)

// by is who forgets and aborts, in the documents that say so.
const by = "qbackup"

// keepTime bounds what is spent on a policy, below the time after which a machine counts as hung.
const keepTime = 10 * time.Minute

// keep forgets the points that the machine's policy does not keep, and remembers how many there are. That it cannot is no
// failure of the backup before it, of which everything is done by now.
func (f *Fleet) keep(ctx context.Context, m Machine) {
	if m.Keep.Empty() || ctx.Err() != nil {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	decisions, forgotten, err := f.applyPolicy(bounded, m)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		err = fmt.Errorf("points of %s that the policy does not keep stay: %w", m.Name, err)
		f.o.Note(err.Error())
	}
	note := f.results.Update(m.Name, func(r *state.Result) {
		k := &r.Kept
		k.Time, k.Error, k.Forgotten = f.o.Agent.Clock().UTC(), text(err), k.Forgotten+uint64(forgotten)
		if len(decisions) == 0 {
			return
		}
		k.Points = 0
		for _, d := range decisions {
			if !d.Keep && err == nil {
				continue
			}
			if k.Points++; k.Points == 1 {
				k.Oldest = d.Time
			}
			k.Newest = d.Time
		}
	})
	if note != nil {
		f.o.Note(note.Error())
	}
}

func (f *Fleet) applyPolicy(ctx context.Context, m Machine) (decisions []retention.Decision, forgotten int, err error) {
	f.mu.Lock()
	repository := f.repository
	f.mu.Unlock()
	if decisions, err = prune.Decide(ctx, repository, m.Name, m.Keep, time.Local); err == nil {
		forgotten, err = prune.Forget(ctx, repository, m.Name, decisions, by, f.o.Agent.Host)
	}
	return decisions, forgotten, err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Prune deletes what no point of these machines needs, and remembers what that came to.
func (f *Fleet) Prune(ctx context.Context, machines []ident.MachineName, ended func(prune.MachineReport)) error {
	repository, err := f.Repository(ctx)
	var reports []prune.MachineReport
	if err == nil {
		reports, err = prune.Run(ctx, repository, prune.Options{Machines: machines, By: by, Ended: ended})
	}
	return errors.Join(err, RememberPrune(ctx, f.results, f.o.Agent.Clock().UTC(), reports, err))
}

// RememberPrune writes down how a prune ended, and what it found of the machines that this host backs up.
func RememberPrune(ctx context.Context, results *state.Results, now time.Time, reports []prune.MachineReport, err error) error {
	var objects, bytes, aborted uint64
	var notes error
	for _, r := range reports {
		if r.Deleted {
			objects += uint64(len(r.Victims))
			bytes += uint64(r.Bytes())
		}
		aborted += uint64(len(r.Aborted))
		if r.Err == nil && r.Machine != "" {
			notes = errors.Join(notes, rememberKept(results, now, r))
		}
	}
	return errors.Join(notes, results.UpdateOverall(func(o *state.Overall) {
		p := &o.Prune
		if ctx.Err() == nil { // one that was cut short is tried again
			p.End, p.Error = now, text(err)
		}
		p.Objects, p.Bytes, p.RunsAborted = p.Objects+objects, p.Bytes+bytes, p.RunsAborted+aborted
	}))
}

func rememberKept(results *state.Results, now time.Time, r prune.MachineReport) error {
	if results.Machine(r.Machine).Attempt.Status == state.StatusNone {
		return nil // another host's
	}
	return results.Update(r.Machine, func(v *state.Result) {
		k := &v.Kept
		k.Time, k.Points, k.Oldest, k.Newest = now, r.Points, r.Oldest, r.Newest
		k.PrunedAt, k.StoredBytes = now, r.StoredBytes
	})
}
