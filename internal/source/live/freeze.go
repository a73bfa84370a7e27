package live

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/exported"
	"github.com/qbackup/qbackup/internal/source/scratch"
)

// Freeze sets the point in time of all disks that bases names, in one transaction,
// and makes them readable. Before, it takes down what an earlier run left.
func (m *Machine) Freeze(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	if run.IsZero() {
		return nil, errors.New("freeze: a run without id")
	}
	s, err := m.connect(ctx)
	if err != nil {
		return nil, err
	}
	c := &cut{machine: m, session: s, run: run}
	err = c.begin(ctx, m, bases)
	if why := c.watch.Err(); why != nil {
		err = why // what the watch ended may have made the rest fail
	}
	if err != nil {
		err = s.explain(err)
		return nil, errors.Join(err, c.Abort(ctx))
	}
	return c, nil
}

func (c *cut) begin(ctx context.Context, m *Machine, bases []source.Base) error {
	s := c.session
	if err := s.lock(ctx, lockTime); err != nil {
		return err
	}
	if err := s.checkEnds(ctx); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		return fmt.Errorf("take down what an earlier run left: %w", err)
	}
	for _, dir := range []string{m.options.ScratchDir, m.options.RuntimeDir} {
		if err := removeStale(dir, m.options.Family); err != nil {
			return err
		}
	}
	if err := c.choose(ctx, m, bases); err != nil {
		return err
	}
	var err error
	if c.space, err = scratch.Open(m.options.ScratchDir, m.options.ScratchFloorBytes); err != nil {
		return err
	}
	if err := c.prepare(ctx, m.options.Family); err != nil {
		return fmt.Errorf("prepare the scratch images: %w", err)
	}
	if err := c.settle(ctx, m.options); err != nil {
		return err
	}
	if c.socket, err = newSocketFolder(m.options.RuntimeDir, m.options.Family, s.monitor.PeerUID()); err != nil {
		return fmt.Errorf("make a folder for QEMU's NBD socket: %w", err)
	}
	if err := c.instant(ctx, m.options); err != nil {
		return err
	}
	if err := c.export(ctx); err != nil {
		return fmt.Errorf("export the disks: %w", err)
	}
	return c.connect(ctx)
}

// choose makes the disks of the cut, which must be as they were inspected.
func (c *cut) choose(ctx context.Context, m *Machine, bases []source.Base) error {
	now, err := c.session.survey(ctx, m.options)
	if err != nil {
		return err
	}
	for i, base := range bases {
		was, ok := m.seen[base.Disk]
		if !ok {
			return fmt.Errorf("freeze disk %s: the disk was not inspected, or cannot be used", base.Disk)
		}
		is, err := was.among(now)
		if err != nil {
			return err
		}
		d := &disk{cut: c, number: i, found: is, base: base}
		if !base.Run.IsZero() && !slices.ContainsFunc(d.found.mergeable, d.continues) {
			return &source.UsableError{Path: d.found.evidence.Path, Err: fmt.Errorf("no usable bitmap of family %s continues run %s", base.Family, base.Run)}
		}
		c.disks = append(c.disks, d)
	}
	return nil
}

// settle makes sure that the disks still are what was chosen, now that they are below
// scratch images. From here on QEMU lets nobody put another image on top of one: the
// cut would be one of what lies below, as it was then.
func (c *cut) settle(ctx context.Context, o Options) error {
	now, err := c.session.survey(ctx, o)
	if err != nil {
		return err
	}
	for _, d := range c.disks {
		if d.found, err = d.found.among(now); err != nil {
			return err
		}
	}
	return nil
}

// continues tells whether a bitmap's name speaks of the base.
func (d *disk) continues(bitmap string) bool {
	name, ok := ident.ParseBitmapName(bitmap)
	return ok && name.Stamp == d.base.Run
}

// instant is the point in time. The guest's file systems are frozen for nothing but
// the transaction.
func (c *cut) instant(ctx context.Context, o Options) error {
	frozen := false
	if o.Freezer != nil {
		err := o.Freezer.Freeze(ctx)
		frozen = err == nil
		if err != nil && (o.FreezeRequired || ctx.Err() != nil) {
			return fmt.Errorf("freeze the guest's file systems: %w", err)
		}
		if err != nil {
			note(o, fmt.Sprintf("the guest's file systems are not frozen, the point is what a power cut leaves: %v", err))
		}
	}
	err := c.session.transaction(ctx, c.actions())
	// From here on QEMU may hold the cut, whatever it said.
	c.begun = true
	if err == nil {
		// Before all that can take its time: QEMU is using scratch space now.
		c.watch = exported.StartWatch(func(watch context.Context) error { return c.look(watch, ctx) }, c.giveUp)
	}
	if frozen {
		how, thawErr := o.Freezer.Thaw(context.WithoutCancel(ctx))
		if thawErr != nil {
			return errors.Join(err, fmt.Errorf("thaw the guest's file systems: %w", thawErr))
		}
		c.freezeSeconds, c.frozen = how.Seconds, how.Broken == ""
		if how.Broken != "" && o.FreezeRequired {
			return errors.Join(err, fmt.Errorf("freeze the guest's file systems: %s", how.Broken))
		}
		if how.Broken != "" {
			note(o, "the guest's file systems did not stay frozen, the point is what a power cut leaves: "+how.Broken)
		}
	}
	if err != nil {
		return fmt.Errorf("set the point in time: %w", err)
	}
	return nil
}

func note(o Options, text string) {
	if o.Note != nil {
		o.Note(text)
	}
}

// actions are the transaction: for each disk, and in this order, the new bitmap, the
// place for the frozen bits, the point in time, and the bits.
func (c *cut) actions() []action {
	var list []action
	for _, d := range c.disks {
		if d.records() {
			list = append(list, addBitmap(d.found.node, d.newBitmap()))
		}
		if d.incremental() {
			list = append(list, addFrozen(d.name(scratchNode), d.granularity()))
		}
		list = append(list, backup(d.found.node, d.name(scratchNode), d.name(jobPrefix)))
		if d.incremental() {
			list = append(list, mergeBitmaps(d.name(scratchNode), frozenName, d.found.node, d.found.mergeable))
		}
	}
	return list
}

// export lets QEMU serve the disks as they were. A QEMU has one NBD server.
func (c *cut) export(ctx context.Context) error {
	s := c.session
	start := args{"addr": args{"type": "unix", "data": args{"path": c.socket.path}}}
	if s.features.maxConnections {
		start["max-connections"] = 0 // no limit: a disk has several
	}
	// Whether it was started must be known, also by a run that is interrupted: of all that
	// is made, the server alone has no name by which it is recognised later.
	err := s.do(context.WithoutCancel(ctx), "nbd-server-start", start, nil)
	var refused *qmp.Error
	c.serving = !errors.As(err, &refused)
	if err != nil {
		return &source.UsableError{Path: s.path, Err: fmt.Errorf("start QEMU's NBD server: %w", err),
			Hint: "a QEMU has one; if it is in use by a migration or another program, wait until that is done"}
	}
	for _, d := range c.disks {
		if err := s.exportDisk(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) exportDisk(ctx context.Context, d *disk) error {
	name := d.name(exportName)
	if !s.features.blockExports {
		a := args{"device": d.name(scratchNode), "name": name}
		if d.incremental() {
			a["bitmap"] = frozenName
		}
		return s.do(ctx, "nbd-server-add", a, nil)
	}
	a := args{"type": "nbd", "id": name, "node-name": d.name(scratchNode), "name": name}
	if d.incremental() {
		a["bitmaps"] = []string{frozenName}
	}
	return s.do(ctx, "block-export-add", a, nil)
}

// connect opens the exports.
func (c *cut) connect(ctx context.Context) error {
	for _, d := range c.disks {
		spec := exported.Spec{
			Name: d.found.evidence.Name, SizeBytes: d.found.evidence.SizeBytes, Socket: c.socket.path, Export: d.name(exportName),
			Extra: d.base.Extra, Explain: c.session.gone, Why: func() error { return c.watch.Err() },
		}
		if d.incremental() {
			spec.Bitmap = frozenName
		}
		if c.session.features.passFile {
			spec.Keep = func(conn net.Conn) error { return c.session.ends.keep(ctx, conn) }
		}
		var err error
		if d.exported, err = exported.Connect(ctx, spec); err != nil {
			return err
		}
		// Whoever waits for QEMU must not do so for ever.
		c.watch.Then(func() { _ = d.exported.Close() })
	}
	return nil
}
