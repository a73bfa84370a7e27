package retry

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// flight bounds the calls in flight: additive increase, multiplicative decrease.
type flight struct {
	mu      sync.Mutex
	most    float64
	limit   float64 // 1 <= limit <= most
	out     int
	lastCut time.Time
	queue   []chan struct{} // closed when its owner may go; first come, first served
}

func newFlight(most int) *flight {
	return &flight{most: float64(most), limit: float64(most)}
}

// acquire waits for a place and returns the time at which it was given.
func (f *flight) acquire(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	f.mu.Lock()
	if f.out < int(f.limit) && len(f.queue) == 0 {
		f.out++
		f.mu.Unlock()
		return time.Now(), nil
	}
	turn := make(chan struct{})
	f.queue = append(f.queue, turn)
	f.mu.Unlock()
	select {
	case <-turn:
		return time.Now(), nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.queue, turn); i >= 0 {
		f.queue = slices.Delete(f.queue, i, i+1)
	} else { // the place was given at the same moment
		f.out--
		f.admit()
	}
	return time.Time{}, ctx.Err()
}

// release gives the place back. A store that is busy halves the limit, once for
// all calls that were in flight at the time, because they met the same cause.
func (f *flight) release(started time.Time, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out--
	switch {
	case errors.Is(err, store.ErrBusy):
		if !started.Before(f.lastCut) {
			f.limit = max(1, f.limit/2)
			f.lastCut = time.Now()
		}
	case err == nil:
		f.limit = min(f.most, f.limit+1/f.limit)
	}
	f.admit()
}

func (f *flight) admit() {
	for len(f.queue) > 0 && f.out < int(f.limit) {
		close(f.queue[0])
		f.queue = f.queue[1:]
		f.out++
	}
}

// limitNow is for tests and statistics.
func (f *flight) limitNow() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(f.limit)
}
