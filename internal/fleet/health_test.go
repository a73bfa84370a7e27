package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/state"
)

func TestHealthIsTheWorstThatIsKnown(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) state.Point { return state.Point{Time: now.Add(-d)} }
	attempt := func(s state.Status) state.Attempt {
		a := state.Attempt{Status: s, Start: now.Add(-time.Hour)}
		if s != state.StatusOK {
			a.Error = "the disk is gone; bring it back"
		}
		return a
	}
	for _, c := range []struct {
		name      string
		r         state.Result
		objective time.Duration
		want      fleet.Health
		says      string
	}{
		{"new", state.Result{}, time.Hour, fleet.HealthNew, "no backup yet"},
		{"fine", state.Result{Attempt: attempt(state.StatusOK), Success: ago(time.Hour)}, 2 * time.Hour, fleet.HealthOK, ""},
		{"fine without an objective", state.Result{Attempt: attempt(state.StatusOK), Success: ago(1e4 * time.Hour)}, 0, fleet.HealthOK, ""},
		{"late", state.Result{Attempt: attempt(state.StatusOK), Success: ago(3 * time.Hour)}, 2 * time.Hour, fleet.HealthLate, "is 3h0m0s old, the objective is 2h0m0s"},
		{"failed within the objective", state.Result{Attempt: attempt(state.StatusFailed), Success: ago(time.Hour)}, 2 * time.Hour, fleet.HealthFailed, "the disk is gone; bring it back"},
		{"failed and late", state.Result{Attempt: attempt(state.StatusFailed), Success: ago(3 * time.Hour)}, 2 * time.Hour, fleet.HealthLate, "3h0m0s old, the objective is 2h0m0s; the disk is gone"},
		{"never and late", state.Result{Attempt: attempt(state.StatusFailed)}, time.Minute, fleet.HealthLate, "no point with all disks within 1m0s; the disk is gone"},
		{"partial", state.Result{Attempt: attempt(state.StatusPartial), Success: ago(time.Hour)}, 2 * time.Hour, fleet.HealthPartial, "the disk is gone"},
		{"interrupted", state.Result{Attempt: attempt(state.StatusInterrupted), Success: ago(time.Hour)}, 0, fleet.HealthFailed, "the disk is gone"},
	} {
		got := fleet.HealthOf(c.r, c.objective, now)
		if said := got.Say(c.r, c.objective, now); got != c.want || !strings.Contains(said, c.says) || c.says == "" && said != "" {
			t.Errorf("%s: %s, %q", c.name, got, said)
		}
	}
}
