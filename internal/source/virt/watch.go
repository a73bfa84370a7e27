package virt

import (
	"context"
	"sync/atomic"
	"time"
)

// watch looks after the scratch space of a cut, from one goroutine. What it finds
// wrong is what every read gets from then on.
type watch struct {
	found  atomic.Pointer[error]
	cancel context.CancelFunc
	done   chan struct{}
}

func startWatch(c *cut) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		if err := guardSpace(ctx, c); err != nil && ctx.Err() == nil {
			w.found.Store(&err)
			c.giveUp(ctx)
		}
	}()
	return w
}

// guardSpace returns when there is a reason to give up.
func guardSpace(ctx context.Context, c *cut) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		room, err := c.space.Room()
		if err != nil {
			return err
		}
		if c.space.Nearly(room) {
			return c.space.Full(room)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// err returns what was found; nil: nothing. A nil watch finds nothing.
func (w *watch) err() error {
	if w == nil {
		return nil
	}
	if p := w.found.Load(); p != nil {
		return *p
	}
	return nil
}

// end stops the goroutine, and waits for it. It may be called again.
func (w *watch) end() {
	if w != nil {
		w.cancel()
		<-w.done
	}
}
