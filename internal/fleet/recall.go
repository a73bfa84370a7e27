package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/state"
)

// recallMax bounds how many of a machine's newest points are looked at for one with all
// disks.
const recallMax = 16

// recall makes up for what this host does not remember of a machine, because it is new
// here or its state was lost: the newest points, as the repository has them.
func (f *Fleet) recall(ctx context.Context, repository *repo.Repository, machine ident.MachineName) error {
	known := f.results.Machine(machine)
	if !known.Latest.Run.IsZero() || known.Attempt.Status != state.StatusNone {
		return nil
	}
	runs, err := repository.Slots(ctx, machine)
	if err != nil {
		return err
	}
	var latest, success state.Point
	for _, run := range slices.Backward(runs[max(0, len(runs)-recallMax):]) {
		record, err := repository.Record(ctx, machine, run)
		if errors.Is(err, repo.ErrNoPoint) || errors.Is(err, repo.ErrDamaged) {
			continue // aborted, or nothing to remember
		}
		if err != nil {
			return err
		}
		p := state.Point{Run: run, Time: record.Time}
		for _, d := range record.Disks {
			p.StoredBytes += d.StoredBytes
		}
		if latest.Run.IsZero() {
			latest = p
		}
		if record.Complete() {
			success = p
			break
		}
	}
	if latest.Run.IsZero() {
		return nil
	}
	f.o.Note(fmt.Sprintf("machine %s: this host remembered nothing of it; its newest point is of %s, as the repository has it", machine, latest.Time.Local().Format(time.DateTime)))
	return f.results.Update(machine, func(r *state.Result) { r.Latest, r.Success = latest, success })
}
