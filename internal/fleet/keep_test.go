package fleet_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/retention"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/mem"
)

// aging is a world whose store has a clock of its own, and which refuses what rules say.
func aging(t *testing.T, rules ...fault.Rule) (w *world, pass func(time.Duration)) {
	w = newWorld(t)
	now := time.Now()
	s := mem.NewWithClock(func() time.Time { return now })
	if _, _, err := repo.Init(t.Context(), s, repo.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	faulty := fault.New(s, 1, rules...)
	w.open = func(ctx context.Context) (*repo.Repository, error) { return repo.Open(ctx, faulty, repo.Options{}) }
	w.o.Agent.Clock = func() time.Time { return now }
	return w, func(d time.Duration) { now = now.Add(d) }
}

func (w *world) keeping(p retention.Policy) fleet.Machine {
	machines, problems := fleet.Expand(w.Context(), []fleet.Entry{{Spec: offlineSpec(w.image("a.qcow2")), Policy: fleet.Policy{Keep: p}}})
	if len(problems) > 0 {
		w.Fatal(problems)
	}
	return machines[0]
}

func TestAPolicyIsAppliedAfterEachBackupAndPruned(t *testing.T) {
	w, pass := aging(t)
	m := w.keeping(retention.Policy{Last: 2})
	f := fleet.New(w.o)
	for range 5 {
		pass(48 * time.Hour)
		if e := f.Backup(t.Context(), m, new(agent.Stats)); e.Err != nil {
			t.Fatal(e.Err)
		}
	}
	if k := f.Results().Machine("a").Kept; k.Points != 2 || k.Forgotten != 3 || k.Error != "" || k.Newest.Sub(k.Oldest) != 48*time.Hour {
		t.Errorf("%+v", k)
	}
	pass(8 * 24 * time.Hour)
	if err := f.Prune(t.Context(), named([]fleet.Machine{m}), nil); err != nil {
		t.Fatal(err)
	}
	o := f.Results().Overall().Prune
	k := f.Results().Machine("a").Kept
	if o.Objects == 0 || o.Bytes == 0 || o.Error != "" || o.End.IsZero() || k.StoredBytes == 0 || k.Points != 2 || k.PrunedAt.IsZero() {
		t.Errorf("%+v, %+v", o, k)
	}
}

func TestWhatCannotBeForgottenOrDeletedIsRememberedAndNoFailureOfABackup(t *testing.T) {
	w, pass := aging(t, fault.Rule{Verb: fault.Put, Prefix: "forgotten/", Count: fault.Forever, Err: store.ErrDenied}, fault.DenyDelete())
	m := w.keeping(retention.Policy{Last: 1})
	var notes []string
	w.o.Note = func(text string) { notes = append(notes, text) }
	f := fleet.New(w.o)
	for range 2 {
		pass(48 * time.Hour)
		if e := f.Backup(t.Context(), m, new(agent.Stats)); e.Err != nil {
			t.Fatal(e.Err)
		}
	}
	if k := f.Results().Machine("a").Kept; k.Points != 2 || k.Forgotten != 0 || !strings.Contains(k.Error, "does not keep stay") {
		t.Errorf("%+v", k)
	}
	if len(notes) == 0 || !strings.Contains(strings.Join(notes, "\n"), "points of a that the policy does not keep stay") {
		t.Errorf("%q", notes)
	}
	if err := f.Prune(t.Context(), named([]fleet.Machine{m}), nil); !errors.Is(err, store.ErrDenied) {
		t.Errorf("prune: %v", err)
	}
	if o := f.Results().Overall().Prune; o.Error == "" || o.Objects != 0 || o.End.IsZero() {
		t.Errorf("%+v", o)
	}
	w.open = func(context.Context) (*repo.Repository, error) { return nil, store.ErrTransient }
	f = fleet.New(w.o)
	if err := f.Prune(t.Context(), named([]fleet.Machine{m}), nil); !errors.Is(err, store.ErrTransient) {
		t.Errorf("prune without a store: %v", err)
	}
}
