package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/retention"
)

// Decide says which points of a machine a policy keeps, the oldest first. Nothing is changed.
func Decide(ctx context.Context, r *repo.Repository, machine ident.MachineName, policy retention.Policy, zone *time.Location) ([]retention.Decision, error) {
	if err := policy.Check(); err != nil {
		return nil, err
	}
	listed, err := r.Points(ctx, machine)
	if err != nil {
		return nil, err
	}
	pinned, err := r.Pinned(ctx, machine)
	if err != nil {
		return nil, err
	}
	bad := &repo.PackSet{}
	if err := r.Condemn(ctx, machine, bad); err != nil {
		return nil, err
	}
	points := make([]retention.Point, 0, len(listed))
	for _, info := range listed {
		p := retention.Point{Run: info.Run, Time: info.Time(), Stored: info.Stored, Unreadable: info.Record == nil}
		_, p.Pinned = slices.BinarySearchFunc(pinned, info.Run, ident.RunID.Compare)
		if info.Record != nil {
			p.Missing, p.Disks = !info.Record.Complete(), disksOf(info.Record)
			if p.Damaged, err = damaged(ctx, r, info.Record, bad); err != nil {
				return nil, err
			}
		}
		points = append(points, p)
	}
	return retention.Decide(points, policy, zone), nil
}

func disksOf(r *format.Record) (names []string) {
	for _, d := range r.Disks {
		if d.Mode != format.ModeMissing {
			names = append(names, d.Name)
		}
	}
	return names
}

// damaged tells whether a verification found damage in anything that a point may need.
func damaged(ctx context.Context, r *repo.Repository, record *format.Record, bad *repo.PackSet) (bool, error) {
	if bad.Empty() {
		return false, nil
	}
	p, err := r.OpenRecord(ctx, record)
	if errors.Is(err, repo.ErrDamaged) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(p.Dependencies(), func(d format.Dependency) bool { return bad.Touches(d.Run) }), nil
}

// Forget writes a tombstone for each point that does not stay, and says how many there were.
func Forget(ctx context.Context, r *repo.Repository, machine ident.MachineName, decisions []retention.Decision, by, host string) (forgotten int, err error) {
	going := slices.DeleteFunc(slices.Clone(decisions), func(d retention.Decision) bool { return d.Keep })
	if len(going) == 0 {
		return 0, nil
	}
	doc, known, err := r.Machine(ctx, machine)
	if err == nil && !known {
		err = fmt.Errorf("forget points of %s: the machine's document is missing", machine)
	}
	if err != nil {
		return 0, err
	}
	for _, d := range going {
		changed, err := r.Forget(ctx, repo.MarkSpec{Machine: machine, MachineID: doc.ID, Run: d.Run, By: by, Host: host, Reason: "no rule keeps it"})
		if err != nil {
			return forgotten, fmt.Errorf("forget point %s of %s: %w", d.Run, machine, err)
		}
		if changed {
			forgotten++
		}
	}
	back, err := recallPinned(ctx, r, repo.MarkSpec{Machine: machine, MachineID: doc.ID, By: by, Host: host, Reason: "it was pinned meanwhile"}, runsOf(going))
	return forgotten - back, err
}

func runsOf(decisions []retention.Decision) (runs []ident.RunID) {
	for _, d := range decisions {
		runs = append(runs, d.Run)
	}
	return runs
}

// recallPinned brings points back that were pinned while they were forgotten: whoever pins looks for tombstones afterwards,
// whoever forgets looks for pins afterwards, and one of both sees the other.
func recallPinned(ctx context.Context, r *repo.Repository, spec repo.MarkSpec, runs []ident.RunID) (back int, err error) {
	pinned, err := r.Pinned(ctx, spec.Machine)
	if err != nil {
		return 0, err
	}
	for _, run := range runs {
		if _, found := slices.BinarySearchFunc(pinned, run, ident.RunID.Compare); !found {
			continue
		}
		spec.Run = run
		if _, err := r.Unforget(ctx, spec); err != nil {
			return back, err
		}
		back++
	}
	return back, nil
}

// ErrPinned: a point that is pinned is not forgotten.
var ErrPinned = errors.New("the point is pinned; qbackup unpin leaves it to be forgotten")

// ForgetOne forgets a point by its name, unless it is pinned.
func ForgetOne(ctx context.Context, r *repo.Repository, spec repo.MarkSpec) (changed bool, err error) {
	if pinned, err := r.Pinned(ctx, spec.Machine); err != nil {
		return false, err
	} else if slices.Contains(pinned, spec.Run) {
		return false, fmt.Errorf("point %s of %s: %w", spec.Run, spec.Machine, ErrPinned)
	}
	if changed, err = r.Forget(ctx, spec); err != nil {
		return changed, err
	}
	back, err := recallPinned(ctx, r, spec, []ident.RunID{spec.Run})
	if err == nil && back > 0 {
		err = fmt.Errorf("point %s of %s: %w", spec.Run, spec.Machine, ErrPinned)
	}
	return changed, err
}
