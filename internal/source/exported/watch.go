package exported

import (
	"context"
	"sync"
	"sync/atomic"
)

// Watch looks for reasons to give a cut up. A nil Watch finds none.
type Watch struct {
	found  atomic.Pointer[error]
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	after []func()
}

// StartWatch runs look, which returns when there is a reason, or with its ctx. Then
// giveUp is called at once, whoever is still reading; Err tells the reason before.
func StartWatch(look func(ctx context.Context) error, giveUp func(ctx context.Context)) *Watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		if err := look(ctx); err != nil && ctx.Err() == nil {
			w.found.Store(&err)
			w.mu.Lock()
			for _, f := range w.after {
				f()
			}
			w.after = nil
			w.mu.Unlock()
			giveUp(ctx)
		}
	}()
	return w
}

// Then calls f as soon as there is a reason to give up, before giveUp.
func (w *Watch) Then(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.found.Load() != nil {
		f()
		return
	}
	w.after = append(w.after, f)
}

// Err returns what was found; nil: nothing.
func (w *Watch) Err() error {
	if w == nil {
		return nil
	}
	if p := w.found.Load(); p != nil {
		return *p
	}
	return nil
}

// End stops the goroutine, and waits for it. It may be called again.
func (w *Watch) End() {
	if w != nil {
		w.cancel()
		<-w.done
	}
}
