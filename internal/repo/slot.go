package repo

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// SlotState is what a run's commit slot holds.
type SlotState int

// The states of a slot. A slot never leaves Committed or Aborted.
const (
	SlotAbsent SlotState = iota
	SlotCommitted
	SlotAborted
)

// String gives the word for messages.
func (s SlotState) String() string {
	return [...]string{"absent", "committed", "aborted"}[s]
}

// Slot is what the repository says of a run.
type Slot struct {
	State     SlotState
	Record    *format.Record // SlotCommitted only
	Abort     *format.Abort  // SlotAborted only
	Bytes     int64          // length of what lies in the slot
	Forgotten bool           // it has a tombstone that counts
}

// Slot reads a run's slot, and then its tombstone: in this order, a run that is
// committed and not forgotten was a point at the time of the second read.
func (r *Repository) Slot(ctx context.Context, machine ident.MachineName, run ident.RunID) (Slot, error) {
	s, err := r.ReadSlot(ctx, machine, run)
	if err != nil {
		return Slot{}, err
	}
	s.Forgotten, err = r.forgotten(ctx, machine, run)
	if err != nil {
		return Slot{}, err
	}
	return s, nil
}

func (r *Repository) identity(machine ident.MachineName, id ident.MachineID, run ident.RunID) format.Identity {
	return format.Identity{Repository: r.ID(), Machine: machine, MachineID: id, Run: run}
}

// ReadSlot reads a slot and leaves out whether it has a tombstone.
func (r *Repository) ReadSlot(ctx context.Context, machine ident.MachineName, run ident.RunID) (Slot, error) {
	key := format.PointKey(machine, run)
	s, err := readDocument(ctx, r.store, key, func(b []byte) (Slot, error) {
		record, abort, err := format.ParseSlot(b, r.identity(machine, ident.MachineID{}, run))
		if abort != nil {
			return Slot{State: SlotAborted, Abort: abort, Bytes: int64(len(b))}, err
		}
		return Slot{State: SlotCommitted, Record: record, Bytes: int64(len(b))}, err
	})
	if errors.Is(err, store.ErrNotFound) {
		return Slot{}, nil
	}
	if err != nil {
		return Slot{}, judge(key, err)
	}
	if s.Record != nil && s.Record.BlockBytes != r.BlockBytes() {
		return Slot{}, &Damage{Key: key, Offset: -1, Err: fmt.Errorf("it has blocks of %d bytes, the repository of %d: %w", s.Record.BlockBytes, r.BlockBytes(), format.ErrMisplaced)}
	}
	return s, nil
}

// AbortRun takes the slot of a run that must never become a point. nil says that
// the slot is decided, not how: the record may have been there before, or have
// arrived meanwhile. Ask Slot.
//
// On a store that overwrites, an ABORT could replace a record that arrives between
// the look and the PUT: callers who know of such a store must not call this for a
// run that may be alive.
func (r *Repository) AbortRun(ctx context.Context, machine ident.MachineName, id ident.MachineID, run ident.RunID, by string) error {
	if err := r.checkWrite(); err != nil {
		return err
	}
	if s, err := r.ReadSlot(ctx, machine, run); err != nil || s.State != SlotAbsent {
		return err
	}
	nonce, err := format.NewNonce(r.random)
	if err != nil {
		return err
	}
	key := format.PointKey(machine, run)
	body, err := format.AppendAbort(nil, &format.Abort{Identity: r.identity(machine, id, run), Nonce: nonce, By: by, Time: r.clock()})
	if err != nil {
		return fmt.Errorf("make the abort of run %s: %w", run, err)
	}
	found, _, err := create(ctx, r.store, key, body)
	if err != nil {
		return fmt.Errorf("abort run %s: %w", run, err)
	}
	if _, _, err := format.ParseSlot(found, r.identity(machine, id, run)); err != nil {
		return judge(key, err)
	}
	return nil
}
