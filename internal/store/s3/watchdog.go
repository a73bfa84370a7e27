package s3

import (
	"context"
	"errors"
	"time"
)

// errStalled is the cause of a context that the watchdog ended.
var errStalled = errors.New("no progress")

// watchdog ends an attempt when no byte has moved for a while. A deadline for the
// whole attempt was rejected: it would have to know the speed of the line.
type watchdog struct {
	after  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

// watch returns a context for one attempt. The caller must call stop.
func watch(ctx context.Context, after time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	d := &watchdog{after: after, cancel: cancel}
	d.timer = time.AfterFunc(after, func() { cancel(errStalled) })
	return ctx, d
}

// kick tells that something moved.
func (d *watchdog) kick() { d.timer.Reset(d.after) }

// pause stops the clock while the caller, not the service, takes its time.
func (d *watchdog) pause() { d.timer.Stop() }

// stop ends the attempt and frees its context.
func (d *watchdog) stop() {
	d.timer.Stop()
	d.cancel(nil)
}
