package retry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// attempts is the state of one operation that may be tried several times.
type attempts struct {
	s     *Store
	op    string
	key   string
	tries int
	since time.Time // when the operation began, or last made progress
}

func (s *Store) begin(op, key string) *attempts {
	return &attempts{s: s, op: op, key: key, since: time.Now()}
}

// progress restarts budget and delays: part of the work is done for good.
func (a *attempts) progress() {
	a.tries = 0
	a.since = time.Now()
}

// run performs one attempt inside the limit on calls in flight.
func (a *attempts) run(ctx context.Context, try func() error) error {
	started, err := a.s.flight.acquire(ctx)
	if err != nil {
		return store.Fail(a.op, a.key, nil, err, "")
	}
	err = try()
	a.s.flight.release(started, err)
	a.seen(err)
	return err
}

// seen notes whether the store answers at all.
func (a *attempts) seen(err error) {
	if err == nil || !errors.Is(err, store.ErrUnreachable) {
		a.s.answered.Store(true)
	}
}

// wait decides about the error of an attempt. It returns nil, after a delay, when
// another attempt is due, else the error to give to the caller.
func (a *attempts) wait(ctx context.Context, err error) error {
	if !errors.Is(err, store.ErrTransient) {
		return err
	}
	if ended := ctx.Err(); ended != nil {
		return store.Fail(a.op, a.key, ended, err, "")
	}
	a.tries++
	budget := a.s.o.Budget
	if errors.Is(err, store.ErrUnreachable) && !a.s.answered.Load() {
		budget = min(budget, a.s.o.FirstBudget)
	}
	delay := a.delay()
	spent := time.Since(a.since)
	if spent+delay > budget {
		return gaveUp(a.op, a.key, err, a.tries, spent)
	}
	if a.s.o.OnRetry != nil {
		a.s.o.OnRetry(Event{Op: a.op, Key: a.key, Tries: a.tries, Delay: delay, Err: err})
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return store.Fail(a.op, a.key, ctx.Err(), err, "")
	}
}

// delay is full jitter: evenly between nothing and the exponential step. The
// spread, not the mean, is what keeps many clients from returning in step.
func (a *attempts) delay() time.Duration {
	step := a.s.o.Base << min(a.tries-1, 20)
	step = min(step, a.s.o.Cap)
	return time.Duration(rand.Int64N(int64(step) + 1))
}

func gaveUp(op, key string, err error, tries int, spent time.Duration) error {
	hint := ""
	var placed *store.Error
	if errors.As(err, &placed) {
		err, hint = placed.Err, placed.Hint
	}
	if tries > 1 {
		err = fmt.Errorf("gave up after %d attempts in %v: %w", tries, spent.Round(time.Millisecond), err)
	}
	return store.Fail(op, key, nil, err, hint)
}
