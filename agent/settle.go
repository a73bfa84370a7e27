package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
)

// settleLocal finds out how this host's last run ended, when the journal does
// not say. We hold the machine's lock, so that run is dead: without a record it
// never makes a point, and a request of it that is still under way must not
// either, so its slot is taken.
func (b *backup) settleLocal(ctx context.Context, k *knowledge) error {
	last := b.journal.Last
	if b.journal.MachineID == b.machine.ID && !b.journal.Committed.IsZero() {
		if err := b.checkHighWater(ctx, k); err != nil {
			return err
		}
	}
	if last == nil || last.Outcome != state.OutcomeOpen || b.journal.MachineID != b.machine.ID || last.Host != b.o.Host {
		return nil
	}
	slot, err := k.slot(ctx, last.Run)
	if err != nil {
		return err
	}
	if slot.State == repo.SlotAbsent {
		if slot, err = b.takeSlot(ctx, k, last.Run, "its process is gone"); err != nil {
			return err
		}
	}
	outcome := state.OutcomeFailed
	if slot.State == repo.SlotCommitted && !slot.Forgotten {
		outcome = state.OutcomeCommitted
		b.journal.Committed = last.Run
	}
	if b.job.DryRun {
		return nil
	}
	return b.local.End(last.Run, outcome, b.o.Clock())
}

// checkHighWater raises an alarm when the repository lost a point that this host
// saw in it. A forgotten point leaves a tombstone and is no loss.
func (b *backup) checkHighWater(ctx context.Context, k *knowledge) error {
	slot, err := k.slot(ctx, b.journal.Committed)
	if err != nil {
		return err
	}
	if slot.State == repo.SlotAbsent && !slot.Forgotten && k.broken[b.journal.Committed] == "" {
		b.alarm(Alarm{Kind: AlarmRepositoryRolledBack, Text: fmt.Sprintf(
			"this host stored point %s of %s, and the repository does not have it: it was rolled back, or is not the one used before", b.journal.Committed, b.job.Machine)})
	}
	return nil
}

// arbitrate decides about a run of the image's family that has no slot: never
// heard of, dead, or possibly alive.
func (b *backup) arbitrate(ctx context.Context, k *knowledge, run ident.RunID, disk string) (Stamp, error) {
	life, err := b.signs(ctx, run)
	if err != nil {
		return Stamp{}, err
	}
	local := b.journal.Last != nil && b.journal.Last.Run == run && b.journal.Last.Host == b.o.Host
	switch {
	case run == b.journal.Committed:
		return Stamp{State: StampUnknown, Detail: "this host saw its point in the repository"}, nil
	case life.last.IsZero() && !local:
		return Stamp{State: StampUnknown}, nil
	case local:
		return b.dead(ctx, k, run, disk, "its process is gone")
	case life.host == b.o.Host && life.bootID != "" && life.bootID != b.o.BootID:
		return b.dead(ctx, k, run, disk, "its host was restarted")
	}
	// Ages are by the store's clock as far as it is known. The local one only
	// matters when nothing was written since; being wrong costs the other run
	// its point, never a bit, since the slot decides.
	now := life.newest
	if local := b.o.Clock(); local.After(now) {
		now = local
	}
	if age := now.Sub(life.last); age >= silence {
		return b.dead(ctx, k, run, disk, fmt.Sprintf("no sign of life for %s", age.Round(time.Minute)))
	}
	who := fmt.Sprintf("of host %s, last sign of life %s", life.host, life.last.UTC().Format(time.RFC3339))
	return Stamp{State: StampRunning, Detail: who}, nil
}

// dead takes a dead run's slot, and says what became of it: its record may have
// arrived in the meantime.
func (b *backup) dead(ctx context.Context, k *knowledge, run ident.RunID, disk, why string) (Stamp, error) {
	slot, err := b.takeSlot(ctx, k, run, why)
	if err != nil {
		return Stamp{}, err
	}
	if slot.State == repo.SlotCommitted {
		// Asked again, the slot is known.
		return k.stamp(ctx, run, disk)
	}
	return Stamp{State: StampDead, Detail: why}, nil
}

// takeSlot puts ABORT into the slot of a dead run. Where the store would
// overwrite, it is left alone: an ABORT must never replace a record.
func (b *backup) takeSlot(ctx context.Context, k *knowledge, run ident.RunID, why string) (repo.Slot, error) {
	if b.job.DryRun || !b.mayAbort() {
		return repo.Slot{State: repo.SlotAborted}, nil
	}
	err := b.job.Repository.AbortRun(ctx, b.job.Machine, b.machine.ID, run, b.by(why))
	if err != nil {
		return repo.Slot{}, fmt.Errorf("take the slot of dead run %s: %w", run, err)
	}
	delete(k.slots, run)
	return k.slot(ctx, run)
}

func (b *backup) by(why string) string {
	return fmt.Sprintf("%s on %s: %s", b.o.Tool, b.o.Host, why)
}

// mayAbort tells whether the store is known to honour create-only PUTs, or was
// not probed yet.
func (b *backup) mayAbort() bool {
	p, found := b.job.State.Probe()
	return !found || p.CreateOnly
}

// life is what a run without a slot left behind.
type life struct {
	host, bootID string
	last         time.Time // when its newest object was stored, by the store's clock
	newest       time.Time // when the newest object of any run seen here was stored
}

// signs looks for a run's intent, renewals and data.
func (b *backup) signs(ctx context.Context, run ident.RunID) (life, error) {
	l := life{host: "unknown"}
	s := b.job.Repository.Store()
	for info, err := range s.List(ctx, format.RunsPrefix(b.job.Machine)) {
		if err != nil {
			return life{}, fmt.Errorf("look for intents: %w", err)
		}
		l.newest = later(l.newest, info.Modified)
		key, err := format.ParseKey(info.Key)
		if err == nil && key.Run == run {
			l.last = later(l.last, info.Modified)
		}
	}
	for info, err := range s.List(ctx, format.DataPrefix(b.job.Machine, run)) {
		if err != nil {
			return life{}, fmt.Errorf("look for data of run %s: %w", run, err)
		}
		l.last, l.newest = later(l.last, info.Modified), later(l.newest, info.Modified)
	}
	raw, err := store.ReadAll(ctx, s, format.IntentKey(b.job.Machine, run, 0), format.MaxDocumentBytes)
	if errors.Is(err, store.ErrNotFound) {
		return l, nil
	}
	if err != nil {
		return life{}, fmt.Errorf("read intent of run %s: %w", run, err)
	}
	// An intent that cannot be parsed still is one; whose it was stays unknown.
	at := format.Identity{Repository: b.job.Repository.ID(), Machine: b.job.Machine, MachineID: b.machine.ID, Run: run}
	if intent, err := format.ParseIntent(raw, at, 0); err == nil {
		l.host, l.bootID = intent.Host, intent.BootID
	}
	return l, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
