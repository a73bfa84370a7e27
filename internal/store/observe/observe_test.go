package observe_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/limit"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/store/observe"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func TestAnObservedStoreKeepsThePromisesOfAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return observe.New(mem.New(), new(observe.Stats)) })
}

func TestEveryCallIsCountedWithItsOutcome(t *testing.T) {
	var stats observe.Stats
	f := fault.New(mem.New(), 0)
	s := observe.New(f, &stats)
	ctx := t.Context()
	body := store.NewBody(make([]byte, 1000))
	put := func() { _ = s.Put(ctx, "a", body, store.PutOptions{}) }
	put()
	put()
	for _, class := range []error{store.ErrDenied, store.ErrFull, store.ErrTransient, store.ErrUnreachable, store.ErrBusy, store.ErrCorrupt} {
		f.Add(fault.Rule{Verb: fault.Put, Err: class})
		put()
	}
	_, _ = s.Stat(ctx, "b")
	_, _ = s.Get(ctx, "b", 0, -1)
	r, err := s.Get(ctx, "a", 0, 600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	for range s.List(ctx, "") {
	}
	_ = s.Delete(ctx, []string{"a"})
	for _, c := range []struct {
		v    observe.Verb
		o    observe.Outcome
		want int64
	}{
		{observe.Put, observe.OK, 1}, {observe.Put, observe.Exists, 1}, {observe.Put, observe.Denied, 1}, {observe.Put, observe.Full, 1},
		{observe.Put, observe.Transient, 2}, {observe.Put, observe.Busy, 1}, {observe.Put, observe.Failed, 1},
		{observe.Stat, observe.NotFound, 1}, {observe.Get, observe.NotFound, 1}, {observe.Get, observe.OK, 1},
		{observe.List, observe.OK, 1}, {observe.Delete, observe.OK, 1}, {observe.Delete, observe.Failed, 0},
	} {
		if got := stats.Calls(c.v, c.o); got != c.want {
			t.Errorf("%v %v: %d, want %d", c.v, c.o, got, c.want)
		}
	}
	if stats.BytesSent.Load() != 1000 || stats.BytesReceived.Load() != 500 {
		t.Errorf("bytes: %d sent, %d received", stats.BytesSent.Load(), stats.BytesReceived.Load())
	}
}

func TestLatencyFallsIntoItsBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stats observe.Stats
		// One request per second: the second call takes a second.
		s := observe.New(limit.New(mem.New(), limit.Options{RequestsPerSecond: 1}), &stats)
		for range 2 {
			_, _ = s.Stat(t.Context(), "a")
		}
		buckets, total := stats.Latency(observe.Stat)
		if buckets[0] != 1 || buckets[9] != 1 || total != time.Second {
			t.Errorf("%v, %v; bounds %v", buckets, total, observe.LatencyBounds())
		}
	})
}
