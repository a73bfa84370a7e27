package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/probe"
)

// probeAfter is how old the verdict on a store may get before a backup asks again.
const probeAfter = 24 * time.Hour

// checkStore makes sure that this host knows whether the store refuses to overwrite: on one that does not, no run may ever be
// declared dead, since that could replace its record. A light probe writes no new object. It can take trust away and
// not give it back, because it does not see what the full one of init sees.
func (p *program) checkStore(ctx context.Context, repository *repo.Repository, local *state.Repository) error {
	known, found := local.Probe()
	if age := time.Since(known.Time); found && age >= 0 && age < probeAfter {
		return nil
	}
	verdict, err := probe.Light(ctx, repository.Store())
	if err != nil {
		return fmt.Errorf("try out the store: %w", err)
	}
	p.keepVerdict(local, verdict, !found || known.CreateOnly)
	return nil
}

// keepVerdict remembers on this host what the store promises. That a host cannot remember is no reason to stop.
func (p *program) keepVerdict(local *state.Repository, verdict probe.Verdict, trusted bool) {
	detail, err := json.Marshal(verdict)
	if err == nil {
		err = local.SaveProbe(state.Probe{Time: verdict.Time, CreateOnly: trusted && verdict.Exclusive(), Detail: detail})
	}
	if err != nil {
		p.note("the verdict on the store cannot be kept on this host: %v", err)
	}
}
