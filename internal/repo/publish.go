package repo

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// Publish makes the run a point: it stores the record in the run's commit slot.
// Whatever the store answers, a look into the slot decides, and after it one for a
// tombstone (I2):
//
//	nil                the slot holds this record, and nobody has forgotten it
//	ErrAborted         the slot holds something else: the run has failed
//	ErrForgotten       the point was forgotten already: the run has failed
//	ErrUnknownOutcome  nobody can tell now: bits stay, a later run looks again
//
// Another error comes from before the first request, or the store refused every
// one of them for good: there is no point. Identity, Nonce, BlockBytes and
// Manifest of the record are filled in.
func (run *Run) Publish(ctx context.Context, record *format.Record) error {
	run.mu.Lock()
	defer run.mu.Unlock()
	if err := run.complete(record); err != nil {
		return fmt.Errorf("make the record of run %s: %w", run.ID(), err)
	}
	body, err := format.AppendRecord(nil, record)
	if err != nil {
		return fmt.Errorf("make the record of run %s: %w", run.ID(), err)
	}
	if err := run.takeSlot(ctx, body); err != nil {
		return fmt.Errorf("publish run %s: %w", run.ID(), err)
	}
	forgotten, err := run.r.forgotten(ctx, run.identity.Machine, run.ID())
	switch {
	case err != nil:
		return fmt.Errorf("publish run %s: %w: %w", run.ID(), ErrUnknownOutcome, err)
	case forgotten:
		return fmt.Errorf("publish run %s: %w", run.ID(), ErrForgotten)
	}
	return nil
}

// complete fills in what the run knows, and refuses a record that refers to what
// the manifest does not name (I1).
func (run *Run) complete(record *format.Record) error {
	if run.manifest == nil {
		return fmt.Errorf("it is not sealed: %w", format.ErrInvalid)
	}
	record.Identity, record.Nonce = run.identity, run.intent.Nonce
	record.BlockBytes, record.Manifest = run.r.BlockBytes(), run.sealed
	for _, d := range record.Mapped() {
		node := d.Map.Node
		if node.IsZero() {
			continue
		}
		if node.Run == run.ID() {
			if _, ok := run.manifest.Map(node.Object); ok {
				continue
			}
		} else if _, ok := run.manifest.Dependency(node.Run); ok {
			continue
		}
		return fmt.Errorf("disk %s has its map in run %s, which the manifest does not name: %w", d.Name, node.Run, format.ErrInvalid)
	}
	return nil
}

// takeSlot sends the record until the slot says what became of it.
func (run *Run) takeSlot(ctx context.Context, body []byte) error {
	key := format.PointKey(run.identity.Machine, run.ID())
	maybe := false // a request whose effect is not known may still be under way
	var putErr, readErr error
	for range publishAttempts {
		putErr = run.r.store.Put(ctx, key, store.NewBody(body), store.PutOptions{})
		maybe = maybe || !refused(putErr)
		var slot Slot
		slot, readErr = run.r.ReadSlot(ctx, run.identity.Machine, run.ID())
		switch {
		case readErr != nil:
			// Spoiled bytes may have been spoiled on the way: look again.
		case slot.State == SlotCommitted && slot.Record.Nonce == run.intent.Nonce:
			return nil
		case slot.State == SlotCommitted:
			return fmt.Errorf("%w: the slot holds a record that another writer made", ErrAborted)
		case slot.State == SlotAborted:
			return fmt.Errorf("%w by %s", ErrAborted, slot.Abort.By)
		case !maybe:
			return putErr
		}
		if ctx.Err() != nil {
			break
		}
	}
	if isDamage(readErr) {
		// Damage calls for other ways of reading the repository; here it means only
		// that nothing is known.
		readErr = errors.New(readErr.Error())
	}
	return errors.Join(ErrUnknownOutcome, putErr, readErr)
}

// refused reports whether the store has said that a PUT had no effect.
func refused(err error) bool {
	for _, class := range []error{store.ErrDenied, store.ErrFull, store.ErrInvalid} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

// Abort takes the run's own slot, so that it never becomes a point. As with
// AbortRun, nil says that the slot is decided: after a Publish with an unknown
// outcome it may hold the record.
func (run *Run) Abort(ctx context.Context, by string) error {
	return run.r.AbortRun(ctx, run.identity.Machine, run.identity.MachineID, run.ID(), by)
}

// Record reads the record of a point. ErrNoPoint, with ErrAborted or ErrForgotten
// where that is why.
func (r *Repository) Record(ctx context.Context, machine ident.MachineName, run ident.RunID) (*format.Record, error) {
	s, err := r.Slot(ctx, machine, run)
	switch {
	case err != nil:
		return nil, err
	case s.Forgotten:
		return nil, fmt.Errorf("point %s of %s: %w: %w", run, machine, ErrNoPoint, ErrForgotten)
	case s.State == SlotAborted:
		return nil, fmt.Errorf("point %s of %s: %w: %w", run, machine, ErrNoPoint, ErrAborted)
	case s.State == SlotAbsent:
		return nil, fmt.Errorf("point %s of %s: %w", run, machine, ErrNoPoint)
	}
	return s.Record, nil
}
