package virt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/exported"
	"github.com/qbackup/qbackup/internal/source/scratch"
)

// cut is a domain's disks at one instant, held by a backup job of libvirt.
type cut struct {
	machine *Machine
	domain  *domain
	name    ident.BitmapName // of the run's checkpoint, and of everything that is its own
	disks   []*frozenDisk
	space   *scratch.Space
	socket  *socketPlace    // nil: not made
	watch   *exported.Watch // nil until there is a job
	guard   *guard.Guard    // nil: not started

	begun         bool // libvirt may have the job, and the checkpoint
	frozen        bool
	freezeSeconds float64
	ended         bool
	left          bool // the job could not be ended

	// why is the reason for which reads fail, once it was asked for.
	why     error
	whyOnce sync.Once
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
		all = append(all, d)
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

// Confirm makes sure that all that was read came from a job that libvirt still has.
// Nothing has to be held from here on: what the guest writes has a bit in the new
// checkpoint's bitmaps.
func (c *cut) Confirm(ctx context.Context) error {
	if c.ended || !c.begun {
		return fmt.Errorf("confirm: %w", errMisuse)
	}
	for _, d := range c.disks {
		if err := d.Check(); err != nil {
			return err
		}
	}
	files, err := c.machine.backupJob(ctx, c.domain.uuid)
	if err != nil {
		return fmt.Errorf("confirm: %w", explain(c.machine.what(), err))
	}
	if !belongs(files, c.own) {
		return c.explain(ctx, errNoJob)
	}
	return c.confirmJobs(ctx)
}

// confirmJobs makes sure that QEMU still keeps what the guest overwrites. When somebody
// ends the job, libvirt hears of it a moment later, and what is read in between may be
// newer than the point in time. For the state of a disk's job libvirt asks QEMU itself.
func (c *cut) confirmJobs(ctx context.Context) error {
	var questions [][]string
	for _, d := range c.disks {
		questions = append(questions, []string{"blockjob", "--domain", c.domain.uuid, "--path", d.evidence.Name, "--raw"})
	}
	answers, err := c.machine.virsh.all(ctx, questions...)
	if err != nil {
		return fmt.Errorf("confirm: %w", explain(c.machine.what(), err))
	}
	for _, answer := range answers {
		if !strings.Contains(answer, showsBlockJob) {
			return c.explain(ctx, errNoJob)
		}
	}
	return nil
}

// errNoJob is for a backup job that is not there any more.
var errNoJob = errors.New("libvirt has no backup job of this run")

// own tells whether a name is this run's.
func (c *cut) own(name ident.BitmapName) bool { return name == c.name }

// explain finds out, once, why the disks cannot be read any more.
func (c *cut) explain(ctx context.Context, err error) error {
	c.whyOnce.Do(func() { c.why = c.findReason(context.WithoutCancel(ctx), err) })
	return c.why
}

func (c *cut) findReason(ctx context.Context, err error) error {
	if why := c.watch.Err(); why != nil {
		return why
	}
	m := c.machine
	answer, stateErr := m.virsh.do(ctx, []string{"domstate", "--domain", c.domain.uuid, "--reason"})
	state := parseState(answer)
	switch {
	case says(stateErr, saysNoDomain, saysNoDomain2), stateErr == nil && !state.runs():
		return unusable(m.what(), fmt.Errorf("%w while it was backed up: %w", source.ErrGone, err), "nothing was published; back it up again, it is read in its files when it is off")
	case stateErr != nil:
		return unusable(m.what(), fmt.Errorf("%w: %w", err, stateErr), "")
	}
	// Somebody may have ended the job, or the domain was started anew.
	return unusable(m.what(), fmt.Errorf("its backup job was ended from outside: %w", err), "nothing was published; run the backup again")
}

// Commit ends the job, and deletes the checkpoints whose bits the point has. The one
// of this run has recorded since its instant.
func (c *cut) Commit(ctx context.Context) error {
	if c.ended || !c.begun {
		return fmt.Errorf("commit: %w", errMisuse)
	}
	ctx, cancel := teardownContext(ctx)
	defer cancel()
	err := c.takeDown(ctx)
	if err == nil {
		err = c.removeCheckpoints(ctx, func(name ident.BitmapName) bool { return !c.own(name) })
	}
	c.end()
	if err == nil {
		return nil
	}
	err = explain(c.machine.what(), err)
	left := &source.NotReset{}
	for _, d := range c.disks {
		left.Disks = append(left.Disks, source.DiskNotReset{Disk: d.Name(), Err: err})
	}
	return left
}

// removeCheckpoints deletes the bitmaps of some of our checkpoints on the disks of
// the cut, of which libvirt knows what Freeze has derived. A disk that is in no point
// keeps what it has.
func (c *cut) removeCheckpoints(ctx context.Context, which func(ident.BitmapName) bool) error {
	m, uuid := c.machine, c.domain.uuid
	answer, err := m.virsh.do(ctx, ask(uuid, queryNodes))
	if err != nil {
		return err
	}
	r := &running{domain: c.domain}
	if err := parseAnswer(answer, &r.nodes); err != nil {
		return err
	}
	held := r.held(m.o.Family)
	var all error
	for _, name := range held.sorted() {
		if which(name) {
			all = errors.Join(all, m.remove(ctx, uuid, name, held[name], c.has))
		}
	}
	return all
}

// has tells whether the cut has a disk.
func (c *cut) has(target string) bool {
	return slices.ContainsFunc(c.disks, func(d *frozenDisk) bool { return d.Name() == target })
}

// Abort ends the job and deletes the checkpoint that began with it: those that were
// there have recorded all along. A domain that has ended meanwhile keeps the bitmaps;
// the next run finds out that the run of this one is dead.
func (c *cut) Abort(ctx context.Context) error {
	if c.ended {
		return nil
	}
	ctx, cancel := teardownContext(ctx)
	defer cancel()
	err := c.takeDown(ctx)
	if err == nil && c.begun {
		err = c.removeCheckpoints(ctx, c.own)
	}
	c.end()
	if says(err, saysNotRunning, saysNoDomain, saysNoDomain2) {
		return nil
	}
	return explain(c.machine.what(), err)
}

// Leave ends the job and keeps all checkpoints, old and new.
func (c *cut) Leave(ctx context.Context) error {
	if c.ended {
		return nil
	}
	ctx, cancel := teardownContext(ctx)
	defer cancel()
	err := c.takeDown(ctx)
	c.end()
	return explain(c.machine.what(), err)
}

// teardownContext gives what must be done its own time.
func teardownContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
}

// takeDown ends everything but bitmaps. The job comes before the connections to its
// NBD server: QEMU 7.2, as of its fix of CVE-2024-7409, dies when a client hangs up by
// itself and the disk has an I/O thread. The same goes for the death of this process,
// which is why the guard has the connections, too. When the job cannot be ended, all is
// left to the guard, which tries for longer.
func (c *cut) takeDown(ctx context.Context) error {
	c.watch.End()
	if c.begun {
		if err := c.endOwnJob(ctx); err != nil {
			c.left = true
			return err
		}
	}
	var err error
	if c.space != nil {
		err = removeScratch(c.space.Dir(), c.own)
	}
	for _, d := range c.disks {
		_ = d.Close()
	}
	if c.socket != nil {
		err = errors.Join(err, c.socket.remove())
	}
	return err
}

// endOwnJob ends the job, again and again while there is time. A domain that is not there any more has none.
func (c *cut) endOwnJob(ctx context.Context) error {
	for {
		err := c.machine.endJob(ctx, c.domain.uuid, c.own)
		if err == nil || says(err, saysNoDomain, saysNoDomain2) {
			return nil
		}
		if pause(ctx, endPause) != nil {
			return err
		}
	}
}

// end gives the domain up.
func (c *cut) end() {
	c.ended = true
	c.space.Close()
	switch {
	case c.guard == nil:
	case c.left:
		c.guard.Leave()
	default:
		// What it may still hold it goes on to undo, and says so itself.
		_ = c.guard.Done()
	}
	c.machine.unlock()
}
