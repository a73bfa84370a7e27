package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// ErrGraceOver: a point was forgotten too long ago to be brought back; its data may be gone.
var ErrGraceOver = errors.New("the time in which the point could be brought back is over")

// MarkSpec says whose mark is set or taken back, by whom and why.
type MarkSpec struct {
	Machine   ident.MachineName
	MachineID ident.MachineID
	Run       ident.RunID
	By        string
	Host      string
	Reason    string
}

// Forget hides a point: no reader shows it, and no run builds on it. Its data stays for format.Grace. changed is false when
// it was hidden already.
func (r *Repository) Forget(ctx context.Context, spec MarkSpec) (changed bool, err error) {
	return r.mark(ctx, tombstones, spec, true)
}

// Unforget shows a point again, with ErrGraceOver when it is too late for that.
func (r *Repository) Unforget(ctx context.Context, spec MarkSpec) (changed bool, err error) {
	return r.mark(ctx, tombstones, spec, false)
}

// Pin keeps a point from being forgotten by a policy. One that is forgotten, or is just being, is brought back, with
// ErrGraceOver when it is too late for that.
func (r *Repository) Pin(ctx context.Context, spec MarkSpec) (changed bool, err error) {
	if changed, err = r.mark(ctx, pins, spec, true); err != nil {
		return changed, err
	}
	back, err := r.mark(ctx, tombstones, spec, false)
	return changed || back, err
}

// Unpin takes a pin back.
func (r *Repository) Unpin(ctx context.Context, spec MarkSpec) (changed bool, err error) {
	return r.mark(ctx, pins, spec, false)
}

// markKind is a kind of marks.
type markKind struct {
	document format.Kind
	key      format.KeyKind
	prefix   func(ident.MachineName) string
	keyOf    func(ident.MachineName, ident.RunID, uint32) string
	standing func([]format.Stored) format.Standing
}

var (
	tombstones = markKind{format.KindTombstone, format.KeyTombstone, format.ForgottenPrefix, format.TombstoneKey, format.TombstoneStanding}
	pins       = markKind{format.KindPin, format.KeyPin, format.PinsPrefix, format.PinKey, format.PinStanding}
)

// markAttempts bounds how often a mark is written that another one overtook.
const markAttempts = 4

// mark writes marks until they say what is wanted.
func (r *Repository) mark(ctx context.Context, kind markKind, spec MarkSpec, set bool) (changed bool, err error) {
	if err := r.checkWrite(); err != nil {
		return false, err
	}
	late := fmt.Errorf("point %s of %s: %w", spec.Run, spec.Machine, ErrGraceOver)
	for range markAttempts {
		s, err := r.standing(ctx, kind, spec.Machine, spec.Run)
		if err != nil || s.Set == set {
			return changed, err
		}
		number := s.Next
		if set == (number%2 == 1) {
			number++
		}
		recall := kind.document == format.KindTombstone && !set
		if recall && r.clock().Sub(s.Since) >= format.Grace {
			return false, late // a mark that comes too late must not even be there
		}
		if err := r.putMark(ctx, kind, spec, number); err != nil && !errors.Is(err, store.ErrExists) {
			return false, err
		}
		changed = true
		if !recall {
			continue
		}
		// One that nobody has answered, and that changes nothing, came too late.
		if s, err = r.standing(ctx, kind, spec.Machine, spec.Run); err == nil && s.Set && s.Next == number+1 {
			return false, late
		}
	}
	return false, fmt.Errorf("point %s of %s: %w", spec.Run, spec.Machine, ErrConflict)
}

func (r *Repository) putMark(ctx context.Context, kind markKind, spec MarkSpec, number uint32) error {
	nonce, err := format.NewNonce(r.random)
	if err != nil {
		return err
	}
	body, err := format.AppendMark(nil, kind.document, &format.Mark{
		Identity: r.identity(spec.Machine, spec.MachineID, spec.Run), Number: number, Nonce: nonce, By: spec.By, Host: spec.Host, Reason: spec.Reason, Time: r.clock(),
	})
	if err != nil {
		return fmt.Errorf("make a %s of run %s: %w", kind.document, spec.Run, err)
	}
	return r.store.Put(ctx, kind.keyOf(spec.Machine, spec.Run, number), store.NewBody(body), store.PutOptions{})
}

// standing reads the marks of a run. That they are there is what counts: one with spoiled bytes means the same.
func (r *Repository) standing(ctx context.Context, kind markKind, machine ident.MachineName, run ident.RunID) (format.Standing, error) {
	all, err := r.listMarks(ctx, kind, kind.keyOf(machine, run, 0))
	return all[run], err
}

// listMarks gives what the marks of a kind under a prefix say, by run.
func (r *Repository) listMarks(ctx context.Context, kind markKind, prefix string) (map[ident.RunID]format.Standing, error) {
	marks := map[ident.RunID][]format.Stored{}
	for info, err := range r.store.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list %ss: %w", kind.document, err)
		}
		if key, err := format.ParseKey(info.Key); err == nil && key.Kind == kind.key {
			marks[key.Run] = append(marks[key.Run], format.Stored{Number: key.Number, At: info.Modified})
		}
	}
	all := make(map[ident.RunID]format.Standing, len(marks))
	for run, list := range marks {
		all[run] = kind.standing(list)
	}
	return all, nil
}

// forgotten tells whether a point is hidden. Most runs have no tombstone, which one request tells.
func (r *Repository) forgotten(ctx context.Context, machine ident.MachineName, run ident.RunID) (bool, error) {
	_, err := r.store.Stat(ctx, format.TombstoneKey(machine, run, 0))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a tombstone: %w", err)
	}
	s, err := r.standing(ctx, tombstones, machine, run)
	return s.Set, err
}

// Tombstones tells of all runs of a machine that have one whether they are forgotten, and since when.
func (r *Repository) Tombstones(ctx context.Context, machine ident.MachineName) (map[ident.RunID]format.Standing, error) {
	return r.listMarks(ctx, tombstones, format.ForgottenPrefix(machine))
}

// Pinned gives the runs of a machine that are pinned, ascending.
func (r *Repository) Pinned(ctx context.Context, machine ident.MachineName) ([]ident.RunID, error) {
	all, err := r.listMarks(ctx, pins, format.PinsPrefix(machine))
	var runs []ident.RunID
	for run, s := range all {
		if s.Set {
			runs = append(runs, run)
		}
	}
	slices.SortFunc(runs, ident.RunID.Compare)
	return runs, err
}
