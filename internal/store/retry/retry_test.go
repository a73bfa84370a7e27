package retry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRetryKeepsThePromisesOfAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return New(mem.New(), Options{}) })
}

func TestRetryKeepsThePromisesOfAStoreInAStorm(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store {
		storm := fault.New(mem.New(), 1,
			fault.Rule{Count: fault.Forever, Chance: 0.1},
			fault.Rule{Count: fault.Forever, Chance: 0.1, Kind: fault.After},
			fault.Rule{Count: fault.Forever, Chance: 0.1, Kind: fault.Truncate},
			fault.Rule{Count: fault.Forever, Chance: 0.05, Err: store.ErrBusy},
			fault.Rule{Verb: fault.Put, Count: fault.Forever, Chance: 0.1, Kind: fault.Late, Delay: 2},
		)
		return New(storm, Options{Base: time.Nanosecond, Cap: time.Nanosecond})
	})
}

func put(ctx context.Context, s store.Store, key, content string) error {
	return s.Put(ctx, key, store.NewBody([]byte(content)), store.PutOptions{})
}

func TestAPutThatArrivedUnseenSucceedsAndAForeignObjectDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := mem.New()
		f := fault.New(inner, 0, fault.Rule{Verb: fault.Put, Kind: fault.After})
		s := New(f, Options{})
		if err := put(t.Context(), s, "a", "mine"); err != nil {
			t.Errorf("put whose first answer was lost: %v", err)
		}
		// The first attempt fails before its effect; somebody else takes the key.
		f.Add(fault.Rule{Verb: fault.Put, Prefix: "b"})
		s.o.OnRetry = func(Event) { inner.Replace("b", []byte("else")) }
		if err := put(t.Context(), s, "b", "mine"); !errors.Is(err, store.ErrExists) {
			t.Errorf("put to a key taken meanwhile: %v", err)
		}
		// Without an earlier attempt, equal bytes are somebody else's.
		if err := put(t.Context(), s, "a", "mine"); !errors.Is(err, store.ErrExists) {
			t.Errorf("second put of equal bytes: %v", err)
		}
	})
}

func TestAComparisonThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fault.New(mem.New(), 0,
			fault.Rule{Verb: fault.Put, Kind: fault.After},
			fault.Rule{Verb: fault.Get},
			fault.Rule{Verb: fault.Get, From: 2, Kind: fault.Truncate})
		if err := put(t.Context(), New(f, Options{}), "a", "mine"); err != nil {
			t.Error(err)
		}
		if got := f.Calls(fault.Put); got != 4 {
			t.Errorf("%d puts, want 4", got)
		}
	})
}

func TestOnlyTransientErrorsAreRetried(t *testing.T) {
	for _, class := range []error{store.ErrDenied, store.ErrFull, store.ErrCorrupt, store.ErrInvalid, store.ErrExists, io.ErrClosedPipe} {
		f := fault.New(mem.New(), 0, fault.Rule{Count: fault.Forever, Err: class})
		err := put(t.Context(), New(f, Options{}), "a", "x")
		if !errors.Is(err, class) || f.Calls(fault.Put) != 1 {
			t.Errorf("%v: %d calls, %v", class, f.Calls(fault.Put), err)
		}
	}
}

func TestBudgets(t *testing.T) {
	for _, c := range []struct {
		name     string
		err      error
		answered bool
		want     time.Duration
	}{
		{"an outage is sat out for a quarter of an hour", store.ErrTransient, false, 15 * time.Minute},
		{"a store that never answered is given up after half a minute", store.ErrUnreachable, false, 30 * time.Second},
		{"a store that answered before gets the whole budget", store.ErrUnreachable, true, 15 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := fault.New(mem.New(), 0)
				s := New(f, Options{})
				if c.answered {
					_, _ = s.Stat(t.Context(), "a")
				}
				f.Add(fault.Rule{Count: fault.Forever, Err: c.err})
				start := time.Now()
				_, err := s.Stat(t.Context(), "a")
				spent := time.Since(start)
				if !errors.Is(err, c.err) || spent > c.want || spent < c.want-31*time.Second && spent < c.want/3 {
					t.Errorf("gave up after %v, want about %v: %v", spent, c.want, err)
				}
				t.Log(err, f.Calls(fault.Stat), "calls")
			})
		})
	}
}

func TestAnEndedContextEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fault.New(mem.New(), 0, fault.Down(1))
		s := New(f, Options{Base: time.Hour, Cap: time.Hour, Budget: 100 * time.Hour, FirstBudget: 100 * time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := s.Stat(ctx, "a")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestAGetGoesOnWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := mem.New()
		want := storetest.Bytes(1, 1<<20)
		inner.Replace("a", want)
		for _, n := range []int64{-1, 900_000} {
			// Each answer is cut in its middle: the rest halves each time.
			f := fault.New(inner, 0, fault.Rule{Verb: fault.Get, Count: 10, Kind: fault.Truncate})
			r, err := New(f, Options{}).Get(t.Context(), "a", 1000, n)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			end := int64(len(want))
			if n > 0 {
				end = 1000 + n
			}
			if err != nil || !bytes.Equal(got, want[1000:end]) {
				t.Errorf("n=%d: %d bytes, %v", n, len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if _, err := r.Read(make([]byte, 1)); err == nil {
				t.Error("read after close succeeds")
			}
			if f.Calls(fault.Get) != 11 {
				t.Errorf("%d gets, want 11", f.Calls(fault.Get))
			}
		}
	})
}

func TestAListGoesOnWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := mem.New()
		for i := range 100 {
			inner.Replace(fmt.Sprintf("k%03d", i), nil)
		}
		f := fault.New(inner, 0, fault.Rule{Verb: fault.List, Count: 3, Kind: fault.Truncate}, fault.Rule{Verb: fault.List, From: 4})
		i := 0
		for info, err := range New(f, Options{}).List(t.Context(), "") {
			if err != nil || info.Key != fmt.Sprintf("k%03d", i) {
				t.Fatalf("%d: %v, %v", i, info.Key, err)
			}
			i++
		}
		if i != 100 || f.Calls(fault.List) != 5 {
			t.Errorf("%d keys in %d calls", i, f.Calls(fault.List))
		}
	})
}

func TestABusyStoreGetsFewerCallsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowStore{Store: mem.New(), most: 4}
		s := New(slow, Options{InFlight: 64})
		done := make(chan error)
		const writers = 200
		for i := range writers {
			go func() { done <- put(t.Context(), s, fmt.Sprintf("k%d", i), "x") }()
		}
		for range writers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if got := s.InFlightLimit(); got > 16 {
			t.Errorf("limit is still %d", got)
		}
		slow.setMost(1000)
		for i := range 2200 {
			_ = put(t.Context(), s, fmt.Sprintf("l%d", i), "x")
		}
		if got := s.InFlightLimit(); got < 60 {
			t.Errorf("limit came back to %d only", got)
		}
	})
}

func TestAPlaceInTheQueueIsGivenUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight(1)
		started, err := f.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error)
		go func() { _, err := f.acquire(ctx); failed <- err }()
		synctest.Wait()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		f.release(started, nil)
		if started, err = f.acquire(t.Context()); err != nil || f.out != 1 || len(f.queue) != 0 {
			t.Errorf("out %d, queue %d, %v", f.out, len(f.queue), err)
		}
		f.release(started, nil)
	})
}
