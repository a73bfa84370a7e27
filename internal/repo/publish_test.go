package repo

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/testtool"
)

// sealed is a run that only has to publish.
func (w *world) sealed(base *Point) *attempt {
	w.t.Helper()
	ctx := context.Background()
	a, err := w.begin(ctx, base)
	if err == nil {
		err = a.upload(ctx, testSize, change{3, 20, 7}, change{25, 3, 0})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.points[a.run.ID()] = a.disk
	return a
}

// judgeVerdict compares what a run was told with what a healthy look at the
// repository shows, and restores whatever is a point (I1, I2).
func (w *world) judgeVerdict(what string, a *attempt, err error) {
	w.t.Helper()
	ctx := context.Background()
	w.store = w.mem
	w.reopen()
	slot, lookErr := w.repo.Slot(ctx, testMachine, a.run.ID())
	if lookErr != nil {
		w.t.Fatalf("%s: %v", what, lookErr)
	}
	mine := slot.State == SlotCommitted && slot.Record.Nonce == a.run.intent.Nonce
	switch {
	case err == nil && (!mine || slot.Forgotten):
		w.t.Errorf("%s: told that it is a point, the slot is %v", what, slot.State)
	case errors.Is(err, ErrAborted) && mine:
		w.t.Errorf("%s: told that it was aborted, but it is a point", what)
	case errors.Is(err, ErrForgotten) && !slot.Forgotten:
		w.t.Errorf("%s: told that it was forgotten, but it was not", what)
	case err != nil && !errors.Is(err, ErrAborted) && !errors.Is(err, ErrForgotten) && !errors.Is(err, ErrUnknownOutcome) && mine:
		w.t.Errorf("%s: told that it failed (%v), but it is a point", what, err)
	}
	if mine {
		if err := w.compare(a.run.ID()); err != nil && !errors.Is(err, ErrForgotten) {
			w.t.Errorf("%s: a point refers to what is not there: %v", what, err)
		}
	}
}

// TestAnyCallOfARunMayFail breaks each call of a whole run in turn, before its
// effect and after it, once and for good.
func TestAnyCallOfARunMayFail(t *testing.T) {
	ctx := context.Background()
	for _, kind := range []fault.Kind{fault.Before, fault.After, fault.Late} {
		for _, count := range []int{1, fault.Forever} {
			for n := 1; ; n++ {
				w := newWorld(t)
				base := w.backup(nil, testSize, change{0, 40, 1})
				broken := fault.New(w.mem, 1, fault.Rule{From: n, Count: count, Kind: kind, Delay: 3})
				w.store = broken
				w.reopenWith(broken)
				a, err := w.begin(ctx, base)
				if a == nil {
					if err == nil {
						t.Fatal("no run and no error")
					}
					continue
				}
				if err == nil {
					err = a.upload(ctx, testSize, change{3, 20, 7}, change{25, 3, 0})
				}
				w.points[a.run.ID()] = a.disk
				if err == nil {
					err = a.run.Publish(ctx, a.record)
				}
				calls := broken.Calls(fault.Any)
				broken.Clear()
				if settleErr := broken.Settle(ctx); settleErr != nil {
					t.Fatal(settleErr)
				}
				w.judgeVerdict("fault", a, err)
				w.check(base.record.Run)
				if n > calls {
					if err != nil {
						t.Errorf("without a fault: %v", err)
					}
					break
				}
			}
		}
	}
}

// reopenWith opens the repository on a healthy store and breaks it afterwards.
func (w *world) reopenWith(s store.Store) {
	w.t.Helper()
	w.store = w.mem
	w.reopen()
	w.repo.store = s
}

// again sends each PUT once more when its answer was lost, as a store that retries
// does.
type again struct{ store.Store }

func (a again) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	err := a.Store.Put(ctx, key, body, o)
	if errors.Is(err, store.ErrTransient) {
		err = a.Store.Put(ctx, key, body, o)
	}
	return err
}

func TestARunSucceedsWhenTheAnswerToEachPutIsLostOnce(t *testing.T) {
	ctx := context.Background()
	for n := 1; n <= 6; n++ {
		w := newWorld(t)
		base := w.backup(nil, testSize, change{0, 40, 1})
		broken := fault.New(w.mem, 1, fault.Rule{Verb: fault.Put, From: n, Kind: fault.After})
		w.repo.store = again{broken}
		a := w.sealed(base)
		err := a.run.Publish(ctx, a.record)
		if err != nil {
			t.Errorf("answer %d lost: %v", n, err)
		}
		w.judgeVerdict("answer lost", a, err)
	}
}

func TestPublishVerdicts(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		prepare func(w *world, a *attempt) []fault.Rule
		want    error
	}{
		"all is well":        {func(*world, *attempt) []fault.Rule { return nil }, nil},
		"the answer is lost": {func(*world, *attempt) []fault.Rule { return []fault.Rule{{Verb: fault.Put, Kind: fault.After}} }, nil},
		"the request is lost, the next one is not": {func(*world, *attempt) []fault.Rule { return []fault.Rule{{Verb: fault.Put, Kind: fault.Before}} }, nil},
		"the request arrives late": {func(*world, *attempt) []fault.Rule {
			return []fault.Rule{{Verb: fault.Put, Kind: fault.Late, Delay: 2}}
		}, nil},
		"every request may arrive after we stop asking": {func(*world, *attempt) []fault.Rule {
			return []fault.Rule{{Verb: fault.Put, Kind: fault.Late, Count: fault.Forever, Delay: 1000}}
		}, ErrUnknownOutcome},
		"the store is gone after the request": {func(*world, *attempt) []fault.Rule {
			return []fault.Rule{{Verb: fault.Put, Kind: fault.After}, {Verb: fault.Get, Count: fault.Forever, Err: store.ErrUnreachable}}
		}, ErrUnknownOutcome},
		"the tombstone cannot be looked for": {func(*world, *attempt) []fault.Rule {
			return []fault.Rule{{Verb: fault.Stat, Count: fault.Forever, Err: store.ErrUnreachable}}
		}, ErrUnknownOutcome},
		"spoiled bytes come back once": {func(*world, *attempt) []fault.Rule { return []fault.Rule{{Verb: fault.Get, Kind: fault.Garble}} }, nil},
		"spoiled bytes come back for ever": {func(*world, *attempt) []fault.Rule {
			return []fault.Rule{{Verb: fault.Get, Kind: fault.Garble, Count: fault.Forever}}
		}, ErrUnknownOutcome},
		"denied": {func(*world, *attempt) []fault.Rule {
			return []fault.Rule{{Verb: fault.Put, Err: store.ErrDenied, Count: fault.Forever}}
		}, store.ErrDenied},
		"full": {func(*world, *attempt) []fault.Rule { return []fault.Rule{fault.Full(1)} }, store.ErrFull},
		"full, after a request that was lost": {func(*world, *attempt) []fault.Rule {
			return []fault.Rule{{Verb: fault.Put, Kind: fault.Late, Delay: 1000}, fault.Full(2)}
		}, ErrUnknownOutcome},
		"aborted before": {func(w *world, a *attempt) []fault.Rule {
			w.must(w.repo.AbortRun(ctx, testMachine, w.machine.ID, a.run.ID(), "prune"))
			return nil
		}, ErrAborted},
		"forgotten before": {func(w *world, a *attempt) []fault.Rule { w.forget(a.run.ID()); return nil }, ErrForgotten},
	} {
		w := newWorld(t)
		a := w.sealed(w.backup(nil, testSize, change{0, 40, 1}))
		rules := c.prepare(w, a)
		broken := fault.New(w.mem, 1, rules...)
		w.repo.store = broken
		err := a.run.Publish(ctx, a.record)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if errors.Is(c.want, store.ErrDenied) && errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("%s: a refusal is no unknown outcome: %v", name, err)
		}
		if errors.Is(err, ErrDamaged) {
			t.Errorf("%s: taken for damage: %v", name, err)
		}
		broken.Clear()
		w.must(broken.Settle(ctx))
		w.judgeVerdict(name, a, err)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestOfTwoWritersOfOneSlotOneWins(t *testing.T) {
	ctx := context.Background()
	for range testtool.Count(6, 200) {
		w := newWorld(t)
		a := w.sealed(w.backup(nil, testSize, change{0, 40, 1}))
		rival := &Run{r: w.repo, identity: a.run.identity, intent: a.run.intent, manifest: a.run.manifest, sealed: a.run.sealed}
		rival.intent.Nonce = format.Nonce{77}
		record := *a.record
		var errs [2]error
		var wg sync.WaitGroup
		wg.Go(func() { errs[0] = a.run.Publish(ctx, a.record) })
		wg.Go(func() { errs[1] = rival.Publish(ctx, &record) })
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("verdicts %v and %v", errs[0], errs[1])
		}
		for _, err := range errs {
			if err != nil && !errors.Is(err, ErrAborted) {
				t.Fatalf("the loser was told %v", err)
			}
		}
		w.judgeVerdict("race", a, errs[0])
	}
}

func TestOfPublishAndAbortOneWins(t *testing.T) {
	ctx := context.Background()
	for range testtool.Count(6, 200) {
		w := newWorld(t)
		a := w.sealed(w.backup(nil, testSize, change{0, 40, 1}))
		var published error
		var wg sync.WaitGroup
		wg.Go(func() { published = a.run.Publish(ctx, a.record) })
		wg.Go(func() { w.must(w.repo.AbortRun(ctx, testMachine, w.machine.ID, a.run.ID(), "prune")) })
		wg.Wait()
		slot, err := w.repo.Slot(ctx, testMachine, a.run.ID())
		w.must(err)
		if (published == nil) != (slot.State == SlotCommitted) || published != nil && !errors.Is(published, ErrAborted) {
			t.Fatalf("publish: %v, slot %v", published, slot.State)
		}
		w.judgeVerdict("race with an abort", a, published)
	}
}

// overwriter is a server that ignores the condition, and on which somebody else
// writes into the slot right after us.
type overwriter struct {
	*mem.Store
	key   string
	after []byte
}

func (o *overwriter) Put(ctx context.Context, key string, body store.Body, po store.PutOptions) error {
	o.Replace(key, body.Bytes())
	if key == o.key && o.after != nil {
		o.Replace(key, o.after)
		o.after = nil
	}
	return nil
}

func TestAServerThatIgnoresConditionsDoesNotFoolPublish(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a := w.sealed(w.backup(nil, testSize, change{0, 40, 1}))
	body, err := format.AppendAbort(nil, &format.Abort{Identity: a.run.identity, Nonce: format.Nonce{9}, By: "somebody", Time: w.clock()})
	w.must(err)
	w.repo.store = &overwriter{Store: w.mem, key: format.PointKey(testMachine, a.run.ID()), after: body}
	err = a.run.Publish(ctx, a.record)
	if !errors.Is(err, ErrAborted) {
		t.Errorf("the slot was overwritten after the PUT was confirmed: %v", err)
	}
	w.judgeVerdict("overwritten", a, err)
}

func TestAbortLooksBeforeItWritesAndNeverReplacesARecord(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	p := w.backup(nil, testSize, change{0, 40, 1})
	w.repo.store = &overwriter{Store: w.mem}
	w.must(w.repo.AbortRun(ctx, testMachine, w.machine.ID, p.record.Run, "prune"))
	w.check(p.record.Run)
}

func TestAbortWithUnknownAnswersIsDecidedByTheSlot(t *testing.T) {
	ctx := context.Background()
	for n := 1; n <= 5; n++ {
		for _, kind := range []fault.Kind{fault.Before, fault.After} {
			w := newWorld(t)
			a := w.sealed(w.backup(nil, testSize, change{0, 40, 1}))
			w.repo.store = fault.New(w.mem, 1, fault.Rule{From: n, Kind: kind})
			err := a.run.Abort(ctx, "test")
			w.repo.store = w.mem
			slot, lookErr := w.repo.Slot(ctx, testMachine, a.run.ID())
			w.must(lookErr)
			if err == nil && slot.State != SlotAborted {
				t.Errorf("call %d, kind %d: told that the slot is decided, it is %v", n, kind, slot.State)
			}
		}
	}
}

func TestAPublishThatIsCancelledKnowsNothing(t *testing.T) {
	w := newWorld(t)
	a := w.sealed(w.backup(nil, testSize, change{0, 40, 1}))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.run.Publish(ctx, a.record); !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
