package prune

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/repo/repotest"
	"github.com/qbackup/qbackup/internal/retention"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const day = 24 * time.Hour

// history is a machine with some points, each on the one before.
type history struct {
	*repotest.World
	t    *testing.T
	runs []ident.RunID
}

func newHistory(t *testing.T, points int) *history {
	h := &history{World: repotest.New(t), t: t}
	for range points {
		h.Pass(day)
		h.add()
	}
	return h
}

func disk(base ident.RunID, n int) repotest.DiskSpec {
	if base.IsZero() {
		return repotest.DiskSpec{Name: "root", SizeBytes: 32 * repotest.Block, Changes: repotest.Changes(0, 32, 1)}
	}
	return repotest.DiskSpec{Name: "root", SizeBytes: 32 * repotest.Block, FromBase: true, Changes: repotest.Changes(int64(n*3%32), 1, int64(n+2))}
}

func (h *history) newest() (run ident.RunID) {
	if len(h.runs) > 0 {
		run = h.runs[len(h.runs)-1]
	}
	return run
}

func (h *history) add() {
	h.runs = append(h.runs, h.Backup(web, h.newest(), disk(h.newest(), len(h.runs))))
}

func (h *history) forget(run ident.RunID) {
	h.t.Helper()
	if _, err := h.Repo.Forget(h.t.Context(), h.spec(run)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *history) spec(run ident.RunID) repo.MarkSpec {
	return repo.MarkSpec{Machine: web, MachineID: h.Machine(web).ID, Run: run, By: "test"}
}

// prune prunes the machine, and checks that every point stands.
func (h *history) prune() MachineReport {
	h.t.Helper()
	reports, err := Run(h.t.Context(), h.Open(), Options{By: "test"})
	if err != nil {
		h.t.Fatal(errors.Join(err, reports[0].Err))
	}
	h.check()
	return reports[0]
}

func (h *history) check() {
	h.t.Helper()
	points, err := h.Open().Points(h.t.Context(), web)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range points {
		if err := errors.Join(p.Err, h.Check(web, p.Run)); err != nil {
			h.t.Errorf("point %s: %v", p.Run, err)
		}
	}
}

// objects gives all keys with their sizes.
func (h *history) objects() map[string]int64 {
	all := map[string]int64{}
	for info, err := range h.Mem.List(context.Background(), "") {
		if err != nil {
			h.t.Fatal(err)
		}
		all[info.Key] = info.Size
	}
	return all
}

func (h *history) dataOf(run ident.RunID) (keys []string) {
	for key := range h.objects() {
		if strings.HasPrefix(key, format.DataPrefix(web, run)) {
			keys = append(keys, key)
		}
	}
	return keys
}

func TestAForgottenPointGoesAfterTheGraceAndOnlyWhatNobodyNeeds(t *testing.T) {
	h := newHistory(t, 6)
	h.prune()
	h.forget(h.runs[0])
	h.forget(h.runs[2])
	h.Pass(format.Grace - time.Minute)
	before := h.objects()
	r := h.prune()
	if !maps.Equal(before, h.objects()) || len(r.Victims) > 0 || r.Points != 4 || r.Forgotten != 2 {
		t.Fatalf("within the grace: %+v", r)
	}
	h.Pass(time.Minute)
	r = h.prune()
	after := h.objects()
	// Run 0 is the full one: others need its packs. Run 2 has one block that run 3 still has, and a map that nobody has.
	if !r.Deleted || r.Points != 4 || r.Forgotten != 0 || r.Bytes() == 0 || len(h.dataOf(h.runs[0])) == 0 {
		t.Errorf("after the grace: %+v", r)
	}
	var stored int64
	objects := 0
	for key, size := range after {
		if strings.HasPrefix(key, "data/") {
			stored, objects = stored+size, objects+1
		}
	}
	if r.StoredBytes != stored || r.StoredObjects != objects {
		t.Errorf("%d bytes of %d objects are left, not %d of %d", stored, objects, r.StoredBytes, r.StoredObjects)
	}
	for _, key := range []string{format.PointKey(web, h.runs[0]), format.TombstoneKey(web, h.runs[0], 0), format.MachineKey(web)} {
		if _, there := after[key]; !there {
			t.Errorf("%s is gone", key)
		}
	}
	if r := h.prune(); len(r.Victims) > 0 {
		t.Errorf("a second time: %+v", r.Victims)
	}
	for _, run := range h.runs[:5] {
		h.forget(run)
	}
	h.Pass(format.Grace)
	h.prune()
	if _, err := h.Repo.Unforget(t.Context(), h.spec(h.runs[4])); !errors.Is(err, repo.ErrGraceOver) {
		t.Errorf("unforget: %v", err)
	}
}

func TestAPointThatIsBroughtBackIsWhole(t *testing.T) {
	h := newHistory(t, 3)
	for _, run := range h.runs[:2] {
		h.forget(run)
	}
	h.prune()
	h.Pass(format.Grace - format.GraceMargin - time.Hour)
	h.prune()
	if changed, err := h.Repo.Unforget(t.Context(), h.spec(h.runs[0])); !changed || err != nil {
		t.Fatal(changed, err)
	}
	h.Pass(10 * day)
	if r := h.prune(); r.Points != 2 {
		t.Errorf("%+v", r)
	}
}

func TestARunThatLivesHoldsWhatItBuildsOn(t *testing.T) {
	h := newHistory(t, 2)
	a := h.Begin(web, h.runs[1])
	h.forget(h.runs[1])
	for range 10 {
		h.Pass(day)
		if err := a.Run.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := h.prune(); !slices.Equal(r.Held, []ident.RunID{a.Run.ID()}) || len(r.Aborted) > 0 {
			t.Fatalf("%+v", r)
		}
	}
	a.Upload(disk(h.runs[1], 9))
	h.prune()
	a.Publish()
	h.prune()
	h.check()
}

func TestARunThatIsSilentForDaysLosesItsSlotAndItsData(t *testing.T) {
	h := newHistory(t, 2)
	a := h.Begin(web, h.runs[1])
	a.Upload(disk(h.runs[1], 9))
	h.Pass(format.RunAge - time.Minute)
	if r := h.prune(); len(r.Aborted) > 0 || len(h.dataOf(a.Run.ID())) == 0 {
		t.Fatalf("%+v", r)
	}
	h.Pass(time.Minute)
	dry, err := Run(t.Context(), h.Open(), Options{DryRun: true})
	if err != nil || len(dry[0].Aborted) != 1 || dry[0].Deleted || len(h.dataOf(a.Run.ID())) == 0 {
		t.Fatalf("dry: %+v, %v", dry, err)
	}
	r := h.prune()
	if !slices.Equal(r.Aborted, []ident.RunID{a.Run.ID()}) || len(h.dataOf(a.Run.ID())) > 0 || !r.Deleted {
		t.Errorf("%+v", r)
	}
	if err := a.TryPublish(); !errors.Is(err, repo.ErrAborted) {
		t.Errorf("publish: %v", err)
	}
	h.check()
}

func TestNothingIsDeletedWhereSomethingCannotBeRead(t *testing.T) {
	for name, key := range map[string]func(h *history) string{
		"a map":                func(h *history) string { return format.MapKey(web, h.runs[1], 0) },
		"a manifest":           func(h *history) string { return format.ManifestKey(web, h.runs[3]) },
		"a record":             func(h *history) string { return format.PointKey(web, h.runs[2]) },
		"what a run builds on": func(h *history) string { return format.IntentKey(web, h.Begin(web, h.runs[1]).Run.ID(), 0) },
	} {
		for _, gone := range []bool{false, true} {
			h := newHistory(t, 4)
			h.forget(h.runs[0])
			h.Pass(format.Grace)
			object := key(h)
			if gone && strings.HasPrefix(object, "points/") {
				continue // then it is a run without a slot
			}
			if gone && !strings.HasPrefix(object, "runs/") {
				if err := h.Mem.Delete(t.Context(), []string{object}); err != nil {
					t.Fatal(err)
				}
			} else {
				h.Mem.Replace(object, []byte("spoiled"))
			}
			before := h.objects()
			reports, err := Run(t.Context(), h.Open(), Options{By: "test"})
			if !errors.Is(err, ErrSomeFailed) || reports[0].Err == nil || !errors.Is(reports[0].Err, repo.ErrDamaged) {
				t.Errorf("%s, gone %v: %v, %+v", name, gone, err, reports)
			}
			if !maps.Equal(before, h.objects()) {
				t.Errorf("%s, gone %v: something was deleted", name, gone)
			}
		}
	}
}

// hooked calls a function before a call of the store.
type hooked struct {
	store.Store
	before func(verb, key string)
}

func (s hooked) Put(ctx context.Context, key string, b store.Body, o store.PutOptions) error {
	s.before("put", key)
	return s.Store.Put(ctx, key, b, o)
}

func (s hooked) Stat(ctx context.Context, key string) (store.Info, error) {
	s.before("stat", key)
	return s.Store.Stat(ctx, key)
}

func (s hooked) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	s.before("list", prefix)
	return s.Store.List(ctx, prefix)
}

func TestARunWhoseBaseWentBeforeItCouldAnnounceItselfBeginsAgain(t *testing.T) {
	h := newHistory(t, 2)
	once := false
	w := h.Through(hooked{h.Mem, func(verb, key string) {
		if once || verb != "put" || !strings.HasPrefix(key, "runs/") {
			return
		}
		once = true
		h.forget(h.runs[0])
		h.Pass(format.Grace)
		h.prune()
	}})
	var forgotten *repo.BaseForgottenError
	if _, err := w.TryBegin(web, h.runs[0]); !errors.As(err, &forgotten) || !once {
		t.Fatalf("%v", err)
	}
}

func TestAPointThatIsNotListedIsFoundByItsData(t *testing.T) {
	h := newHistory(t, 3)
	h.prune() // takes the intents, which would hold what they name
	h.forget(h.runs[0])
	h.forget(h.runs[1])
	h.Pass(format.Grace)
	s := fault.New(h.Mem, 1, fault.Rule{Kind: fault.Omit, Prefix: format.PointKey(web, h.runs[2]), Count: fault.Forever})
	reports, err := Run(t.Context(), h.Through(s).Repo, Options{By: "test"})
	if err != nil || reports[0].Points != 1 || len(reports[0].Aborted) > 0 {
		t.Errorf("%v, %+v", err, reports)
	}
	h.check()
}

func TestAPointThatVanishesStopsEverything(t *testing.T) {
	for _, dataToo := range []bool{false, true} {
		h := newHistory(t, 3)
		h.forget(h.runs[0])
		h.Pass(format.Grace)
		record, lists := format.PointKey(web, h.runs[1]), 0
		s := hooked{h.Mem, func(verb, key string) {
			if verb != "list" || key != format.MachineDataPrefix(web) {
				return
			}
			if lists++; lists == 2 { // the second look begins
				gone := []string{record}
				if dataToo {
					gone = append(gone, h.dataOf(h.runs[1])...)
					gone = append(gone, format.IntentKey(web, h.runs[1], 0))
				}
				if err := h.Mem.Delete(context.Background(), gone); err != nil {
					t.Error(err)
				}
			}
		}}
		reports, err := Run(t.Context(), h.Through(s).Repo, Options{By: "test"})
		if !errors.Is(err, ErrSomeFailed) || !errors.Is(reports[0].Err, ErrVanished) || len(reports[0].Victims) > 0 || len(h.dataOf(h.runs[0])) < 2 {
			t.Errorf("%v, %+v", err, reports)
		}
	}
}

func TestAPruneThatIsCutAnywhereIsFinishedByTheNext(t *testing.T) {
	want := func() map[string]int64 {
		h := newHistory(t, 5)
		h.forget(h.runs[0])
		h.forget(h.runs[1])
		h.forget(h.runs[2])
		h.Pass(format.Grace)
		h.prune()
		return h.objects()
	}()
	for cut := 1; ; cut++ {
		h := newHistory(t, 5)
		h.forget(h.runs[0])
		h.forget(h.runs[1])
		h.forget(h.runs[2])
		h.Pass(format.Grace)
		calls := 0
		s := cutting{h.Mem, func() bool { calls++; return calls >= cut }}
		_, err := Run(t.Context(), h.Through(s).Repo, Options{By: "test"})
		h.check()
		if calls < cut {
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("cut at each of %d objects", cut-1)
			break
		}
		if err == nil {
			t.Fatalf("cut at %d: no error", cut)
		}
		h.prune()
		got := h.objects()
		for key := range got {
			if strings.HasPrefix(key, format.ProbePrefix) {
				delete(got, key) // the clock of the one that was cut
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("cut at %d: %d objects are left instead of %d", cut, len(got), len(want))
		}
	}
}

// cutting deletes objects one by one until it is cut.
type cutting struct {
	store.Store
	cut func() bool
}

func (s cutting) Delete(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if s.cut() {
			return errors.New("killed")
		}
		if err := s.Store.Delete(ctx, []string{key}); err != nil {
			return err
		}
	}
	return nil
}

func TestAStoreThatReplacesObjectsKeepsWhatARunMayStillPublish(t *testing.T) {
	h := newHistory(t, 2)
	dead, aborted := h.Begin(web, h.runs[1]), h.Begin(web, h.runs[1])
	dead.Upload(disk(h.runs[1], 9))
	aborted.Upload(disk(h.runs[1], 10))
	if err := aborted.Run.Abort(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	h.Pass(2 * format.RunAge)
	reports, err := Run(t.Context(), h.Through(fault.New(h.Mem, 1, fault.Rule{Kind: fault.Overwrite, Verb: fault.Put, Count: fault.Forever})).Repo, Options{By: "test"})
	if err != nil || len(reports[0].Aborted) > 0 || len(h.dataOf(dead.Run.ID())) == 0 || len(h.dataOf(aborted.Run.ID())) == 0 {
		t.Errorf("%+v, %v", reports, err)
	}
	if r := h.prune(); len(r.Aborted) != 1 || len(h.dataOf(dead.Run.ID()))+len(h.dataOf(aborted.Run.ID())) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestAPinThatComesWhileAPointIsForgottenWins(t *testing.T) {
	for _, byName := range []bool{false, true} {
		h := newHistory(t, 4)
		victim := h.runs[1]
		w := h.Through(hooked{h.Mem, func(verb, key string) {
			if verb == "put" && strings.HasPrefix(key, format.TombstoneKey(web, victim, 0)) && !strings.HasSuffix(key, ".0001") {
				// It looked for tombstones before this one.
				if _, err := h.Repo.Pin(context.Background(), h.spec(victim)); err != nil {
					t.Error(err)
				}
			}
		}})
		var err error
		if byName {
			_, err = ForgetOne(t.Context(), w.Repo, h.spec(victim))
			if !errors.Is(err, ErrPinned) {
				t.Errorf("by name: %v", err)
			}
		} else {
			decisions, decideErr := Decide(t.Context(), w.Repo, web, retention.Policy{Last: 1}, time.UTC)
			if decideErr != nil {
				t.Fatal(decideErr)
			}
			n, forgetErr := Forget(t.Context(), w.Repo, web, decisions, "test", "host1")
			if forgetErr != nil || n != 2 {
				t.Errorf("%d forgotten, %v", n, forgetErr)
			}
		}
		if _, err := h.Repo.Record(t.Context(), web, victim); err != nil {
			t.Errorf("by name %v: the pinned point is gone: %v", byName, err)
		}
	}
}

func TestPruneTellsOfEachMachine(t *testing.T) {
	h := newHistory(t, 1)
	h.Backup("db", ident.RunID{}, disk(ident.RunID{}, 0))
	var told []ident.MachineName
	_, err := Run(t.Context(), h.Open(), Options{By: "test", Ended: func(r MachineReport) { told = append(told, r.Machine) }})
	slices.Sort(told)
	if err != nil || !slices.Equal(told, []ident.MachineName{"db", web}) {
		t.Errorf("%v, %v", told, err)
	}
	reports, err := Run(t.Context(), h.Open(), Options{Machines: []ident.MachineName{"db"}})
	if err != nil || len(reports) != 1 {
		t.Errorf("%v, %v", reports, err)
	}
	for key := range h.objects() {
		if strings.HasPrefix(key, format.ProbePrefix) {
			t.Errorf("%s is left", key)
		}
	}
}
