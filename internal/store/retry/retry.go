package retry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// Options of New; zero values stand for the defaults in brackets.
type Options struct {
	Budget      time.Duration // from the start of an operation, or its last progress [15 min]
	FirstBudget time.Duration // for an unreachable store that has never answered [30 s]
	Base, Cap   time.Duration // longest first delay and longest delay [200 ms, 30 s]
	InFlight    int           // most calls at once [64]
	OnRetry     func(Event)   // told before each delay; must not block
}

// Event describes an attempt that failed and is followed by another.
type Event struct {
	Op, Key string
	Tries   int           // attempts so far, since the last progress
	Delay   time.Duration // until the next one
	Err     error
}

// Store retries the calls of another store.
type Store struct {
	inner    store.Store
	o        Options
	flight   *flight
	answered atomic.Bool
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Wrapper = (*Store)(nil)
)

// New wraps inner.
func New(inner store.Store, o Options) *Store {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&o.Budget, 15*time.Minute)
	set(&o.FirstBudget, 30*time.Second)
	set(&o.Base, 200*time.Millisecond)
	set(&o.Cap, 30*time.Second)
	if o.InFlight <= 0 {
		o.InFlight = 64
	}
	return &Store{inner: inner, o: o, flight: newFlight(o.InFlight)}
}

// InFlightLimit returns how many calls may be in flight now.
func (s *Store) InFlightLimit() int { return s.flight.limitNow() }

// again runs try until it succeeds, fails for good, or the budget is used up.
func (s *Store) again(ctx context.Context, op, key string, try func() error) error {
	a := s.begin(op, key)
	for {
		err := a.run(ctx, try)
		if err == nil {
			return nil
		}
		if err := a.wait(ctx, err); err != nil {
			return err
		}
	}
}

// Unwrap implements store.Wrapper.
func (s *Store) Unwrap() store.Store { return s.inner }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	unknown := false // an earlier attempt may have arrived
	return s.again(ctx, "put", key, func() error {
		err := s.inner.Put(ctx, key, body, o)
		if unknown && errors.Is(err, store.ErrExists) {
			return s.compare(ctx, key, body, err)
		}
		if errors.Is(err, store.ErrTransient) {
			unknown = true
		}
		return err
	})
}

// compare returns nil when the object has the bytes of body, and exists when it
// has others. An error of reading it is that error: transient ones lead to another
// attempt, and so to another comparison.
func (s *Store) compare(ctx context.Context, key string, body store.Body, exists error) error {
	r, err := s.inner.Get(ctx, key, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, body.Size()+1))
	if err != nil {
		return err
	}
	if !bytes.Equal(b, body.Bytes()) {
		return exists
	}
	return nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (info store.Info, err error) {
	err = s.again(ctx, "stat", key, func() (err error) {
		info, err = s.inner.Stat(ctx, key)
		return err
	})
	return info, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		a := s.begin("list", prefix)
		last, left := "", false
		for {
			err := a.listOnce(ctx, last, func(info store.Info) bool {
				last = info.Key
				left = !yield(info, nil)
				return !left
			})
			if err == nil || left {
				return
			}
			if err := a.wait(ctx, err); err != nil {
				yield(store.Info{}, err)
				return
			}
		}
	}
}

// listOnce is one attempt, which skips what was yielded before. The caller's code
// runs in the middle of it, so it takes no place among the calls in flight: a
// caller that calls the store from its loop would wait for itself.
func (a *attempts) listOnce(ctx context.Context, after string, yield func(store.Info) bool) error {
	previous := ""
	for info, err := range a.s.inner.List(ctx, a.key) {
		a.seen(err)
		if err != nil {
			return err
		}
		if info.Key <= previous {
			return store.Fail("list", a.key, store.ErrCorrupt, fmt.Errorf("%s after %s", info.Key, previous), "")
		}
		previous = info.Key
		if info.Key <= after {
			continue
		}
		a.progress()
		if !yield(info) {
			return nil
		}
	}
	return nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	key := ""
	if len(keys) == 1 {
		key = keys[0]
	}
	return s.again(ctx, "delete", key, func() error { return s.inner.Delete(ctx, keys) })
}
