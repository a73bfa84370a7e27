package state

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

func TestResultsGoOnOverRestartsAndWriters(t *testing.T) {
	dir := t.TempDir()
	const writers, times = 4, 25
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			s, err := Open(dir, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			for range times {
				if err := s.Results("/srv/a").Update("web1", func(r *Result) { r.Counters.BitmapResets++ }); err != nil {
					t.Error(err)
				}
				if err := s.Results("/srv/a").UpdateOverall(func(o *Overall) { o.Store.Retries++ }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := s.Results("/srv/a"), s.Results("/srv/b")
	if got := a.Machine("web1").Counters.BitmapResets; got != writers*times {
		t.Errorf("%d of %d changes", got, writers*times)
	}
	if got := a.Overall().Store.Retries; got != writers*times {
		t.Errorf("%d of %d changes", got, writers*times)
	}
	if got := b.Machine("web1"); got.Machine != "web1" || got.Counters.BitmapResets != 0 {
		t.Errorf("another place: %+v", got)
	}
}

func TestResultsAreListedAndDamageCountsAsAbsent(t *testing.T) {
	reported := 0
	dir := t.TempDir()
	s, err := Open(dir, Options{Report: func(error) { reported++ }})
	if err != nil {
		t.Fatal(err)
	}
	r := s.Results("/srv/a")
	if all, err := r.Machines(); err != nil || len(all) != 0 {
		t.Errorf("nothing yet: %v, %v", all, err)
	}
	at := time.Date(2026, 11, 26, 1, 2, 3, 0, time.UTC)
	for _, name := range []ident.MachineName{"b", "a", "c"} {
		if err := r.Update(name, func(v *Result) { v.Attempt = Attempt{Status: StatusOK, End: at} }); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(r.path("b"), []byte(`{"version":1,"value":{"machine":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, machinesFolder, "Not A Name.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := r.Machines()
	if err != nil || len(all) != 2 || all[0].Machine != "a" || all[1].Machine != "c" || !all[1].Attempt.End.Equal(at) {
		t.Errorf("%+v, %v", all, err)
	}
	if reported != 1 {
		t.Errorf("%d reports of damage", reported)
	}
	if err := os.WriteFile(r.path("b"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.Machine("b"); got.Attempt.Status != StatusNone || got.Machine != "b" {
		t.Errorf("a damaged result: %+v", got)
	}
}

func TestWhatWasBegunAndHasNoEndIsUnfinished(t *testing.T) {
	at := time.Date(2026, 11, 26, 1, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		r    Result
		want bool
	}{
		{"never begun", Result{}, false},
		{"by hand only", Result{Attempt: Attempt{Start: at, End: at.Add(time.Hour), Status: StatusOK}}, false},
		{"begun", Result{Scheduled: at}, true},
		{"begun again", Result{Scheduled: at, Attempt: Attempt{Start: at.Add(-time.Hour), End: at.Add(-time.Minute), Status: StatusOK}}, true},
		{"ended", Result{Scheduled: at, Attempt: Attempt{Start: at, End: at.Add(time.Hour), Status: StatusOK}}, false},
		{"failed", Result{Scheduled: at, Attempt: Attempt{Start: at, End: at.Add(time.Hour), Status: StatusFailed}}, false},
		{"stopped", Result{Scheduled: at, Attempt: Attempt{Start: at, End: at.Add(time.Hour), Status: StatusInterrupted}}, true},
	} {
		if got := c.r.Unfinished(); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
