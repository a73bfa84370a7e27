package main

import (
	"context"
	"encoding/hex"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/metrics"
)

// ahead is what the service knows of the next backups, for the metrics. The backend's lock guards it.
type ahead struct {
	busy  bool // somebody looks
	found []metrics.Next
	// at are the machines that are looked at now: a backup waits for the moment that this takes, so that nobody else has its
	// images open when it resets their bitmaps.
	at map[string]chan struct{}
}

// lookAhead finds out what the next backups would read. Machines that are being backed up are left out.
func (b *backend) lookAhead(ctx context.Context, machines []fleet.Machine) {
	id := b.repositoryID(b.local)
	found := make([]*metrics.Next, len(machines))
	var group errgroup.Group
	group.SetLimit(lookAtOnce)
	for i, m := range machines {
		group.Go(func() error {
			done := b.beginLook(string(m.Name))
			if done == nil {
				return nil
			}
			defer done()
			journal, _ := b.local.Repository(id).Machine(m.Name).Journal()
			if disks, err := b.forecast(ctx, m, journal); err == nil {
				found[i] = &metrics.Next{Machine: m.Name, Looked: time.Now(), Disks: disks}
			}
			return nil
		})
	}
	_ = group.Wait() // no function fails
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ahead.busy, b.ahead.found = false, nil
	for _, n := range found {
		if n != nil {
			b.ahead.found = append(b.ahead.found, *n)
		}
	}
}

// beginLook announces a look at a machine; nil: it is being backed up.
func (b *backend) beginLook(name string) (end func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, busy := b.running[name]; busy {
		return nil
	}
	looked := make(chan struct{})
	if b.ahead.at == nil {
		b.ahead.at = map[string]chan struct{}{}
	}
	b.ahead.at[name] = looked
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.ahead.at, name)
		close(looked)
	}
}

// repositoryID is the id of the repository that was found at the configured place last.
func (p *program) repositoryID(local *state.State) (id format.RepositoryID) {
	if raw, err := hex.DecodeString(local.Results(p.repository).Overall().Repository); err == nil {
		copy(id[:], raw)
	}
	return id
}
