package prune

import (
	"slices"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/repotest"
	"github.com/qbackup/qbackup/internal/retention"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/observe"
)

// Sixty days of daily points, a policy each day, a prune each week, one of them killed.
func TestASeasonOfDailyPointsLeavesWhatThePolicySays(t *testing.T) {
	h := &history{World: repotest.New(t), t: t}
	ctx := t.Context()
	// As on the host that makes the backups, which remembers manifests.
	var err error
	if h.Cache, err = repo.OpenIndexCache(t.TempDir(), repo.DefaultIndexCacheBytes); err != nil {
		t.Fatal(err)
	}
	h.World = h.Through(h.Mem)
	policy := retention.Policy{Daily: 7, Weekly: 4}
	stats := new(observe.Stats)
	deleted := 0
	made := map[ident.RunID]time.Time{}
	for n := range 60 {
		h.Pass(day - 10*time.Second)
		h.runs = append(h.runs, h.Backup(web, h.newest(), season(h.newest(), n)))
		made[h.newest()] = h.Pass(0)
		decisions, err := Decide(ctx, h.Open(), web, policy, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Forget(ctx, h.Repo, web, decisions, "test", "host1"); err != nil {
			t.Fatal(err)
		}
		if n%7 != 6 {
			continue
		}
		var s store.Store = observe.New(h.Mem, stats)
		if n == 34 {
			left := 7
			s = cutting{s, func() bool { left--; return left < 0 }}
		}
		before := len(h.objects())
		reports, err := Run(ctx, h.Through(s).Repo, Options{By: "test"})
		if (err == nil) != (n != 34) {
			t.Fatalf("day %d: %v, %+v", n, err, reports)
		}
		deleted += before - len(h.objects())
	}
	h.Pass(10 * day)
	before := len(h.objects())
	reports, err := Run(ctx, h.Through(observe.New(h.Mem, stats)).Repo, Options{By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	deleted += before - len(h.objects())
	h.check()
	if r := reports[0]; r.Points != len(expected(made)) || r.Forgotten != 0 {
		t.Errorf("%+v", r)
	}
	points, err := h.Open().Points(ctx, web)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, run := range expected(made) {
		want = append(want, run.Format(time.DateOnly))
	}
	for _, p := range points {
		got = append(got, made[p.Run].Format(time.DateOnly))
	}
	if !slices.Equal(got, want) {
		t.Errorf("these stay:\n%v, not\n%v", got, want)
	}
	if n := requests(stats); float64(n) >= 3*float64(deleted) {
		t.Errorf("%d requests for %d deleted objects", n, deleted)
	} else {
		t.Logf("%d objects deleted with %d requests: %.2f each", deleted, n, float64(n)/float64(deleted))
	}
}

// season is what a run finds: part of the disk is written every day, and some of the rest now and then.
func season(base ident.RunID, n int) repotest.DiskSpec {
	d := repotest.DiskSpec{Name: "root", SizeBytes: 64 * repotest.Block, Changes: repotest.Changes(0, 64, 1)}
	if !base.IsZero() {
		d.FromBase, d.Changes = true, repotest.Changes(0, 16, int64(n+2), 16+int64(n*7%48), 1, int64(n+2))
	}
	return d
}

// expected are the last seven days, and the last days of the four weeks that have any.
func expected(made map[ident.RunID]time.Time) (days []time.Time) {
	var all []time.Time
	for _, at := range made {
		all = append(all, at)
	}
	slices.SortFunc(all, time.Time.Compare)
	keep := map[time.Time]bool{}
	for _, at := range all[len(all)-7:] {
		keep[at] = true
	}
	weeks := 0
	for i := len(all) - 1; i >= 0 && weeks < 4; i-- {
		if i == len(all)-1 || all[i].Weekday() == time.Sunday {
			keep[all[i]] = true
			weeks++
		}
	}
	for at := range keep {
		days = append(days, at)
	}
	slices.SortFunc(days, time.Time.Compare)
	return days
}

func requests(s *observe.Stats) (n int64) {
	for v := range observe.Verbs {
		for o := range observe.Outcomes {
			n += s.Calls(v, o)
		}
	}
	return n
}
