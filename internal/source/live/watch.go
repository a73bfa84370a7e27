package live

import (
	"context"
	"time"
)

// look returns when there is a reason to give the cut up; the end of run is one, since
// reads know of no context.
func (c *cut) look(ctx, run context.Context) error {
	nextJobs := time.Now().Add(jobInterval)
	return c.space.Guard(ctx, func(now time.Time) error {
		if err := run.Err(); err != nil {
			return err
		}
		if err := c.session.monitor.Err(); err != nil {
			return c.session.gone(err)
		}
		if now.Before(nextJobs) {
			return nil
		}
		nextJobs = now.Add(jobInterval)
		return c.checkJobs(ctx)
	})
}

// giveUp ends the jobs at once: from then on the guest's writes need no scratch space.
// Abort does the rest, and hears of errors.
func (c *cut) giveUp(ctx context.Context) {
	for _, d := range c.disks {
		_ = c.session.do(ctx, "job-cancel", args{"id": d.name(jobPrefix)}, nil)
	}
}
