package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/state"
	storeprobe "github.com/qbackup/qbackup/internal/store/probe"
)

// probeAfter is how old the verdict on a store may get before it is asked again.
const probeAfter = 24 * time.Hour

// CheckStore makes sure that this host knows whether the store refuses to overwrite: on one that does not, no run may ever be
// declared dead, since that could replace its record. A light probe writes no new object. It can take trust away and
// not give it back, because it does not see what the full one of init sees.
//
// A verdict that this host cannot remember is told to note, and is no reason to stop.
func CheckStore(ctx context.Context, repository *repo.Repository, local *state.Repository, note func(error)) error {
	known, found := local.Probe()
	if age := time.Since(known.Time); found && age >= 0 && age < probeAfter {
		return nil
	}
	verdict, err := storeprobe.Light(ctx, repository.Store())
	if err != nil {
		return fmt.Errorf("try out the store: %w", err)
	}
	if err := KeepVerdict(local, verdict, !found || known.CreateOnly); err != nil {
		note(err)
	}
	return nil
}

// KeepVerdict remembers on this host what the store promises; without trust, that it may overwrite.
func KeepVerdict(local *state.Repository, verdict storeprobe.Verdict, trusted bool) error {
	detail, err := json.Marshal(verdict)
	if err == nil {
		err = local.SaveProbe(state.Probe{Time: verdict.Time, CreateOnly: trusted && verdict.Exclusive(), Detail: detail})
	}
	if err != nil {
		return fmt.Errorf("the verdict on the store cannot be kept on this host: %w", err)
	}
	return nil
}
