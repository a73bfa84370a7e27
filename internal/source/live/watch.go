package live

import (
	"context"
	"sync/atomic"
	"time"
)

// watch looks after a cut at regular times, from one goroutine. The first thing that
// it finds wrong is what every read gets from then on.
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
			w.found.CompareAndSwap(nil, &err)
			c.giveUp(ctx)
		}
	}()
	return w
}

// guardSpace returns when there is a reason to give up.
func guardSpace(ctx context.Context, c *cut) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	meter, err := c.space.NewMeter(time.Now())
	if err != nil {
		return err
	}
	nextJobs := time.Now().Add(jobInterval)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.session.monitor.Lost():
			return c.session.gone(c.session.monitor.Err())
		case now := <-tick.C:
			room, enough, err := meter.Look(now)
			if err != nil {
				return err
			}
			if !enough {
				return c.space.Full(room)
			}
			if now.After(nextJobs) {
				nextJobs = now.Add(jobInterval)
				if err := c.checkJobs(ctx); err != nil {
					return err
				}
			}
		}
	}
}

// giveUp ends the jobs at once, without waiting for whoever reads: from then on the
// guest's writes need no scratch space. Abort does the rest, and hears of errors.
func (c *cut) giveUp(ctx context.Context) {
	for _, d := range c.disks {
		_ = c.session.do(ctx, "job-cancel", args{"id": d.name(jobPrefix)}, nil)
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
