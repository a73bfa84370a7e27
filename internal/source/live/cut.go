package live

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/exported"
	"github.com/qbackup/qbackup/internal/source/scratch"
)

// cut is a machine's disks at one instant, held by its QEMU. The monitor is ours
// until the cut ends.
type cut struct {
	machine *Machine
	session *session
	run     ident.RunID
	disks   []*disk
	space   *scratch.Space
	watch   *exported.Watch // nil until QEMU has the point in time

	begun   bool          // QEMU may hold the point in time, and new bitmaps
	serving bool          // QEMU's NBD server is ours
	socket  *socketFolder // nil: not made

	frozen        bool
	freezeSeconds float64
	ended         bool
}

var (
	_ source.Cut        = (*cut)(nil)
	_ source.Consistent = (*cut)(nil)
	_ source.Scratched  = (*cut)(nil)
)

// errMisuse is for calls in an order that cannot be right.
var errMisuse = errors.New("called out of order")

// Disks gives the disks in the order of the bases.
func (c *cut) Disks() []source.Disk {
	all := make([]source.Disk, 0, len(c.disks))
	for _, d := range c.disks {
		all = append(all, d.exported)
	}
	return all
}

// Consistency tells whether the guest's file systems were frozen.
func (c *cut) Consistency() string {
	if c.frozen {
		return format.ConsistencyFrozen
	}
	return format.ConsistencyCrash
}

// ScratchBytes is how much space what the guest has overwritten takes.
func (c *cut) ScratchBytes() int64 { return c.space.Used() }

// FreezeSeconds is how long they were.
func (c *cut) FreezeSeconds() float64 { return c.freezeSeconds }

// Confirm makes sure that all that was read came from a cut that QEMU still holds.
// Nothing has to be held from here on: what the guest writes has a bit in the new
// bitmaps.
func (c *cut) Confirm(ctx context.Context) error {
	if c.ended {
		return fmt.Errorf("confirm: %w", errMisuse)
	}
	for _, d := range c.disks {
		if err := d.exported.Check(); err != nil {
			return err
		}
	}
	if err := c.checkJobs(ctx); err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	return nil
}

// checkJobs makes sure that QEMU still keeps what the guest overwrites.
func (c *cut) checkJobs(ctx context.Context) error {
	jobs, err := c.session.jobs(ctx)
	if err != nil {
		return c.session.explain(err)
	}
	for _, d := range c.disks {
		at := slices.IndexFunc(jobs, func(j jobInfo) bool { return j.ID == d.name(jobPrefix) })
		if at < 0 {
			return c.session.gone(fmt.Errorf("somebody ended job %s in its QEMU", d.name(jobPrefix)))
		}
		switch j := jobs[at]; j.Status {
		case jobConcluded, jobAborting, jobNull:
			return c.session.gone(fmt.Errorf("job %s in its QEMU has ended: %s", j.ID, j.Error))
		}
	}
	return nil
}

// Commit takes the cut down and then removes the bitmaps whose bits the point has.
// The one that began with the cut has recorded since.
func (c *cut) Commit(ctx context.Context) error {
	if c.ended || !c.begun {
		return fmt.Errorf("commit: %w", errMisuse)
	}
	ctx, cancel := teardownContext(ctx)
	defer cancel()
	left := &source.NotReset{}
	down := c.takeDown(ctx)
	for _, d := range c.disks {
		err := down
		if err == nil && d.records() {
			err = c.session.removeBitmaps(ctx, d.found.node, d.found.family)
		}
		if err != nil {
			left.Disks = append(left.Disks, source.DiskNotReset{Disk: d.found.evidence.Name, Err: err})
		}
	}
	c.end()
	if len(left.Disks) > 0 {
		return left
	}
	return nil
}

// Abort takes the cut down and then removes the bitmaps that began with it: those
// that were there have recorded all along. A QEMU that has ended needs nothing.
func (c *cut) Abort(ctx context.Context) error {
	if c.ended {
		return nil
	}
	ctx, cancel := teardownContext(ctx)
	defer cancel()
	err := c.takeDown(ctx)
	if err == nil && c.begun {
		err = c.removeNew(ctx)
	}
	gone := c.session.monitor.Err() != nil
	c.end()
	if gone {
		return nil
	}
	return err
}

// removeNew removes the bitmaps that the transaction made, if it did.
func (c *cut) removeNew(ctx context.Context) error {
	g, err := c.session.look(ctx)
	if err != nil {
		return err
	}
	for _, d := range c.disks {
		made := slices.ContainsFunc(g.nodes[d.found.node].Bitmaps, func(b bitmapInfo) bool { return b.Name == d.newBitmap() })
		if made {
			err = errors.Join(err, c.session.removeBitmaps(ctx, d.found.node, []string{d.newBitmap()}))
		}
	}
	return err
}

// Leave takes the cut down and keeps all bitmaps, old and new.
func (c *cut) Leave(ctx context.Context) error {
	if c.ended {
		return nil
	}
	ctx, cancel := teardownContext(ctx)
	defer cancel()
	err := c.takeDown(ctx)
	c.end()
	return err
}

// teardownContext gives what must be done its own time.
func teardownContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
}

// takeDown ends everything in QEMU but bitmaps.
func (c *cut) takeDown(ctx context.Context) error {
	c.watch.End()
	var err error
	if c.session.held != nil { // else nothing was made, and what is there is another's
		err = c.session.takeDown(ctx, c.serving)
		c.machine.left = err != nil
	}
	for _, d := range c.disks {
		_ = d.exported.Close()
	}
	if c.socket != nil {
		err = errors.Join(err, c.socket.remove())
	}
	return err
}

// end gives the machine up.
func (c *cut) end() {
	c.ended = true
	c.space.Close()
	c.session.close()
}
