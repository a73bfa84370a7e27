package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
)

const (
	// newestSearch bounds how many points are looked at for the newest one that
	// captured a disk.
	newestSearch = 64
	// descentSearch bounds how many records are read to tell which of several
	// candidates descends from which.
	descentSearch = 64
)

// knowledge is what the repository says of a machine, read once per attempt.
type knowledge struct {
	b      *backup
	points []ident.RunID // slots without a tombstone, ascending; some are aborted
	slots  map[ident.RunID]repo.Slot
	opened map[ident.RunID]*repo.Point
	broken map[ident.RunID]string // runs whose slot cannot be read, and why
	bad    *repo.PackSet          // condemned packs; nil: not asked yet
}

// learnPoints lists the machine's slots, and after them the tombstones, by their
// keys alone: a machine can have thousands of points, and one or two records are
// read. That run ids ascend with time only decides which point is called the
// newest, and no point's truth rests on that.
func (b *backup) learnPoints(ctx context.Context) (*knowledge, error) {
	k := &knowledge{b: b, slots: map[ident.RunID]repo.Slot{}, opened: map[ident.RunID]*repo.Point{}, broken: map[ident.RunID]string{}}
	if b.isNew {
		return k, nil
	}
	var err error
	k.points, err = b.job.Repository.Slots(ctx, b.job.Machine)
	return k, err
}

// slot reads a run's commit slot and tombstone once.
func (k *knowledge) slot(ctx context.Context, run ident.RunID) (repo.Slot, error) {
	if s, known := k.slots[run]; known {
		return s, nil
	}
	s, err := k.b.job.Repository.Slot(ctx, k.b.job.Machine, run)
	if errors.Is(err, repo.ErrDamaged) {
		k.broken[run] = err.Error()
		err = nil
	}
	if err != nil {
		return repo.Slot{}, fmt.Errorf("ask for run %s: %w", run, err)
	}
	k.slots[run] = s
	return s, nil
}

// stamp says what a run is to a disk.
func (k *knowledge) stamp(ctx context.Context, run ident.RunID, disk string) (Stamp, error) {
	if given, known := k.b.lessons.given[run]; known {
		return given, nil
	}
	slot, err := k.slot(ctx, run)
	if err != nil {
		return Stamp{}, err
	}
	if why, broken := k.broken[run]; broken {
		return Stamp{State: StampDamaged, Detail: why}, nil
	}
	switch {
	case slot.State == repo.SlotAborted:
		return Stamp{State: StampDead}, nil
	case slot.Forgotten:
		return Stamp{State: StampForgotten}, nil
	case slot.State != repo.SlotCommitted:
		return k.b.arbitrate(ctx, k, run, disk)
	}
	s := Stamp{State: StampCommitted, Disk: slot.Record.Disk(disk), BlockBytes: slot.Record.BlockBytes}
	if !s.captured() {
		return s, nil
	}
	if err := k.readable(ctx, run, disk); err != nil {
		if !errors.Is(err, repo.ErrDamaged) {
			return Stamp{}, err
		}
		return Stamp{State: StampDamaged, Detail: err.Error()}, nil
	}
	return s, nil
}

// readable opens a disk of a point and walks down to its first leaf: enough to
// know that manifest and root are there. What lies deeper shows when it is used.
func (k *knowledge) readable(ctx context.Context, run ident.RunID, disk string) error {
	d, err := k.disk(ctx, run, disk)
	if err != nil {
		return err
	}
	for _, err := range d.Map().Spans(ctx, 0, min(1, d.Map().Blocks())) {
		if err != nil {
			return err
		}
	}
	return nil
}

// disk opens a disk of a point.
func (k *knowledge) disk(ctx context.Context, run ident.RunID, name string) (*repo.Disk, error) {
	point := k.opened[run]
	if point == nil {
		slot, err := k.slot(ctx, run)
		if err != nil {
			return nil, err
		}
		if slot.Record == nil {
			return nil, fmt.Errorf("open point %s: %w", run, repo.ErrNoPoint)
		}
		if point, err = k.b.job.Repository.OpenRecord(ctx, slot.Record); err != nil {
			return nil, err
		}
		k.opened[run] = point
	}
	return point.Disk(name)
}

// newest finds the newest readable point that captured a disk, zero for none.
func (k *knowledge) newest(ctx context.Context, disk string) (ident.RunID, error) {
	looked := 0
	for _, run := range slices.Backward(k.points) {
		if looked++; looked > newestSearch {
			break
		}
		s, err := k.stamp(ctx, run, disk)
		if err != nil {
			return ident.RunID{}, err
		}
		if s.captured() {
			return run, nil
		}
	}
	return ident.RunID{}, nil
}

// anyPoint tells whether the machine has a point at all; one that cannot be read
// is one.
func (k *knowledge) anyPoint(ctx context.Context) (bool, error) {
	for _, run := range slices.Backward(k.points) {
		s, err := k.slot(ctx, run)
		if err != nil || s.State == repo.SlotCommitted || k.broken[run] != "" {
			return err == nil, err
		}
	}
	return false, nil
}

// addDescent reads the records between candidates, when there are several, so
// that the rule can tell which descends from which.
func (k *knowledge) addDescent(ctx context.Context, in *BaseInput) error {
	candidates := 0
	for _, stamp := range in.family().stamps() {
		if in.Stamps[stamp].captured() {
			candidates++
		}
	}
	if candidates < 2 {
		return nil
	}
	for _, stamp := range in.family().stamps() {
		at := in.Bases[stamp]
		for steps := 0; steps < descentSearch && !at.IsZero(); steps++ {
			if _, known := in.Bases[at]; known {
				break
			}
			record, err := k.recordOf(ctx, at)
			if err != nil || record == nil {
				if err != nil {
					return err
				}
				break
			}
			d := record.Disk(in.Disk)
			if d == nil {
				break
			}
			in.Bases[at] = d.Base
			at = d.Base
		}
	}
	return nil
}

// recordOf gives the record of a run, also of a forgotten one, nil when there is
// none that can be read.
func (k *knowledge) recordOf(ctx context.Context, run ident.RunID) (*format.Record, error) {
	s, err := k.slot(ctx, run)
	if err != nil || s.State != repo.SlotCommitted {
		return nil, err
	}
	return s.Record, nil
}
