package virt

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/exported"
	"github.com/qbackup/qbackup/internal/source/facts"
	"github.com/qbackup/qbackup/internal/source/scratch"
)

// freezeRunning sets the point in time of a domain that runs, and makes its disks
// readable. Before, it ends what an earlier run left.
func (m *Machine) freezeRunning(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	c := &cut{machine: m, name: ident.BitmapName{Family: m.o.Family, Stamp: run}}
	if err := c.begin(ctx, bases); err != nil {
		if ctx.Err() == nil {
			err = explain(m.what(), err)
		}
		return nil, errors.Join(err, c.Abort(ctx))
	}
	return c, nil
}

func (c *cut) begin(ctx context.Context, bases []source.Base) error {
	m := c.machine
	d, err := m.look(ctx, m.running.uuid)
	if err != nil {
		return err
	}
	if d.id != m.running.id {
		return unusable(m.what(), fmt.Errorf("%w: it was started or ended meanwhile", source.ErrChanged), "run the backup again")
	}
	if err = m.lock(ctx, d.uuid); err != nil {
		return err
	}
	c.domain = d
	if err := m.recover(ctx, d.uuid); err != nil {
		return err
	}
	if c.space, err = scratch.Open(m.o.ScratchDir, m.o.ScratchFloorBytes); err != nil {
		return err
	}
	if err := scratch.CheckReach(c.space.Dir(), d.owner, scratch.PlaceFlag); err != nil {
		return err
	}
	answers, err := m.virsh.all(ctx, ask(d.uuid, queryNodes), listCheckpoints(d.uuid))
	if err != nil {
		return err
	}
	r := &running{domain: d}
	if err := parseAnswer(answers[0], &r.nodes); err != nil {
		return err
	}
	if err := c.choose(r, bases); err != nil {
		return err
	}
	if err := m.derive(ctx, d.uuid, answers[1], r.held(m.o.Family)); err != nil {
		return err
	}
	if c.socket, err = m.newSocketPlace(ctx, d); err != nil {
		return err
	}
	if err := c.startGuard(ctx); err != nil {
		return err
	}
	if err := c.makeScratch(); err != nil {
		return err
	}
	if err := c.instant(ctx, r); err != nil {
		return err
	}
	return c.connect(ctx)
}

// choose makes the disks of the cut, which must be as they were inspected.
func (c *cut) choose(r *running, bases []source.Base) error {
	m := c.machine
	for _, base := range bases {
		was, is := m.running.find(base.Disk), r.find(base.Disk)
		if was == nil || is == nil {
			return unusable("disk "+base.Disk, fmt.Errorf("%w: the domain has it no longer", source.ErrChanged), "run the backup again")
		}
		before, err := m.running.diskEvidence(was, base.Family)
		if err != nil {
			return err
		}
		now, err := r.diskEvidence(is, base.Family)
		if err != nil {
			return err
		}
		if what := difference(before, now); what != "" {
			return unusable(now.Path, fmt.Errorf("%w: %s", source.ErrChanged, what), "run the backup again")
		}
		d := &frozenDisk{cut: c, evidence: now, base: base}
		if d.incremental() && d.baseBitmap() == "" {
			return unusable(now.Path, fmt.Errorf("no usable bitmap of family %s continues run %s", base.Family, base.Run), "")
		}
		c.disks = append(c.disks, d)
	}
	return nil
}

// find gives a disk by name, nil when there is none.
func (d *domain) find(target string) *disk {
	for i := range d.disks {
		if d.disks[i].target == target {
			return &d.disks[i]
		}
	}
	return nil
}

// difference says in a few words what of a disk is no longer as it was; empty:
// nothing.
func difference(was, is source.DiskEvidence) string {
	switch {
	case was.Path != is.Path:
		return fmt.Sprintf("its image is %s instead of %s", is.Path, was.Path)
	case was.SizeBytes != is.SizeBytes:
		return fmt.Sprintf("it has %d bytes instead of %d", is.SizeBytes, was.SizeBytes)
	case was.Version != is.Version:
		return "its format is another"
	}
	return ""
}

// baseBitmap is the name of the bitmap that continues the base; empty: none can.
func (d *frozenDisk) baseBitmap() string {
	for _, b := range d.evidence.Bitmaps {
		if b.Usable() && b.Recording && b.Family.Stamp == d.base.Run {
			return b.Name
		}
	}
	return ""
}

// makeScratch makes the scratch files. libvirt could do so, too, but then it formats them by jobs of QEMU's inside of the
// instant, and QEMU 7.2 dies when the guest is resumed or suspended next to such a job: it goes over all block backends, and
// the job's is being deleted.
func (c *cut) makeScratch() error {
	for _, d := range c.disks {
		if _, err := c.space.Image(filepath.Base(c.scratchPath(d)), d.evidence.SizeBytes, c.domain.owner); err != nil {
			return fmt.Errorf("make the scratch image of disk %s: %w", d.Name(), err)
		}
	}
	return nil
}

func (c *cut) scratchPath(d *frozenDisk) string { return scratchPath(c.space.Dir(), c.name, d.Name()) }

// instant is the point in time. The guest's file systems are frozen, and the guest
// is suspended, for nothing but the step that sets it.
func (c *cut) instant(ctx context.Context, r *running) error {
	job, chk := c.define()
	begin := func() error {
		args := []string{"backup-begin", "--domain", c.domain.uuid, "--reuse-external", "--backupxml", fileArg(0)}
		files := []string{job}
		if chk != "" {
			args, files = append(args, "--checkpointxml", fileArg(1)), append(files, chk)
		}
		// From here on libvirt may hold the cut, whatever it says, and a command that
		// is interrupted leaves libvirt at work.
		c.begun = true
		_, err := c.machine.virsh.do(context.WithoutCancel(ctx), args, files...)
		if err == nil {
			// From here on the guest uses scratch space, and a thaw may take its time.
			c.watch = exported.StartWatch(c.look, c.giveUp)
		}
		return err
	}
	if c.mustSuspend(r) {
		begin = c.suspended(ctx, begin)
	}
	if err := c.frozenFor(ctx, r, begin); err != nil {
		return fmt.Errorf("set the point in time: %w", err)
	}
	return nil
}

// mustSuspend tells whether the guest could write between libvirt's copy of the bits
// and the point in time: it does so in I/O threads.
func (c *cut) mustSuspend(r *running) bool {
	return !r.state.paused() && slices.ContainsFunc(c.disks, func(d *frozenDisk) bool {
		return d.incremental() && r.find(d.Name()).iothread
	})
}

// define writes the backup job and the checkpoint, which is empty when no disk can
// have one.
func (c *cut) define() (job, chk string) {
	x := backupXML{Mode: "pull", Server: backupServer{Transport: "unix", Socket: c.socket.path}}
	var records checkpoint
	for _, d := range c.disks {
		one := backupDiskXML{Name: d.Name(), Backup: "yes", Type: "file", Mode: "full", Export: d.Name(),
			Scratch: &backupTarget{File: c.scratchPath(d)}}
		if d.incremental() {
			one.Mode, one.Incremental, one.Bitmap = "incremental", d.baseBitmap(), bitmapName
		}
		x.Disks = append(x.Disks, one)
		if d.records() {
			records.disks = append(records.disks, d.Name())
		}
	}
	if len(records.disks) > 0 {
		chk = define(c.name, records, false)
	}
	return marshal(x), chk
}

// connect opens the exports, and describes the images as they are now.
func (c *cut) connect(ctx context.Context) error {
	for _, d := range c.disks {
		if err := d.connect(ctx, c.socket.path); err != nil {
			return err
		}
		if c.guard != nil { // which has the connections, too
			c.watch.Then(func() { _ = d.Close() })
		}
		found, err := facts.Running(d.evidence.Path, d.evidence.Version == 0)
		if err != nil {
			return unusable("disk "+d.Name(), err, hintFile(err))
		}
		found.GranularityBytes = d.evidence.Facts.GranularityBytes
		d.facts = found
	}
	return nil
}
