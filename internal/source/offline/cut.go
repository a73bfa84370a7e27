package offline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
)

// cut is a machine's images, locked. Its descriptors are the only ones that are
// used from Freeze to the last reset, so that there is no gap between locks.
type cut struct {
	run   ident.RunID
	hold  bool
	disks []*frozenDisk
	watch *watch

	confirmed bool
	ended     bool
}

var _ source.Cut = (*cut)(nil)

// errMisuse is for calls in an order that cannot be right.
var errMisuse = errors.New("called out of order")

func (c *cut) images() []*image {
	var all []*image
	for _, d := range c.disks {
		all = append(all, d.image)
	}
	return all
}

// Disks gives the disks in the order of the bases.
func (c *cut) Disks() []source.Disk {
	all := make([]source.Disk, 0, len(c.disks))
	for _, d := range c.disks {
		all = append(all, d)
	}
	return all
}

// Confirm takes the locks of the final phase on all images, and only then looks
// whether anything has changed: what is found stays true.
func (c *cut) Confirm(ctx context.Context) error {
	if c.ended || c.confirmed {
		return fmt.Errorf("confirm: %w", errMisuse)
	}
	c.watch.end()
	if err := c.watch.err(); err != nil {
		return err
	}
	for _, d := range c.disks {
		if err := d.denyWriters(ctx, c.hold); err != nil {
			return fmt.Errorf("confirm disk %s: %w", d.Name(), err)
		}
	}
	for _, d := range c.disks {
		if err := d.claimWrite(ctx); err != nil {
			return fmt.Errorf("confirm disk %s: %w", d.Name(), err)
		}
	}
	for _, d := range c.disks {
		if err := d.compare(); err != nil {
			return fmt.Errorf("confirm disk %s: %w", d.Name(), err)
		}
	}
	c.confirmed = true
	return nil
}

// denyWriters keeps writers away from all files of the disk. With Options.Hold
// they are kept away already, and one that is seen is about to fail: it sets its
// own locks before it looks for ours.
func (d *frozenDisk) denyWriters(ctx context.Context, held bool) error {
	for _, f := range d.image.files {
		attempts := 1
		if held {
			attempts = lockAttempts
		}
		if err := insist(ctx, attempts, f.locks.denyWriters); err != nil {
			return f.startedError(err)
		}
	}
	return nil
}

// claimWrite takes a writer's locks on an image that will be written to. Readers
// that do not go away in time make the reset impossible, and nothing else.
func (d *frozenDisk) claimWrite(ctx context.Context) error {
	if !d.writes() {
		return nil
	}
	top := d.image.top()
	err := insist(ctx, lockAttempts, top.locks.claimWrite)
	var conflict *conflictError
	if !errors.As(err, &conflict) {
		return err
	}
	switch conflict.offset {
	case deniesWrite, deniesSize:
		d.readers = fmt.Errorf("%w: %w", source.ErrReaders, heldError(top.path, top.id, top.os))
		return nil
	}
	return top.startedError(err)
}

// insist tries again as long as others are in the way, for a short time.
func insist(ctx context.Context, attempts int, lock func() error) error {
	for {
		err := lock()
		attempts--
		var conflict *conflictError
		if err == nil || attempts <= 0 || !errors.As(err, &conflict) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// writes says whether Commit has anything to write into this image: raw images
// and those of version 2 have no bitmaps.
func (d *frozenDisk) writes() bool {
	return d.image.header != nil && d.image.header.Version >= 3 && !d.plan(d.image.ours, d.image.header).empty()
}

func (d *frozenDisk) plan(ours []bitmap, h *qcow2.Header) plan {
	return planCommit(ours, h.BitmapsValid(), d.base.Family, d.run, d.base.AddFamily)
}

// compare makes sure that the disk is what was read.
func (d *frozenDisk) compare() error {
	for _, f := range d.image.files {
		if err := f.dropPages(); err != nil {
			return err
		}
	}
	now, err := d.image.takePrint()
	if err != nil {
		return asUnusable(d.image.spec.Path, err)
	}
	if what := d.print.difference(now); what != "" {
		return changed(d.image.spec, what)
	}
	return nil
}

// Commit resets the bitmaps image by image; all images stay locked until the last
// one is done. An edit that fails is tried once more from what it left behind,
// since no lock was lost in between. The cut has ended afterwards, whatever comes
// out: the point stands, and what was not reset is the next run's.
func (c *cut) Commit(context.Context) error {
	if c.ended || !c.confirmed {
		return fmt.Errorf("commit: %w", errMisuse)
	}
	var left source.NotReset
	for _, d := range c.disks {
		if err := d.commit(); err != nil {
			left.Disks = append(left.Disks, source.DiskNotReset{Disk: d.Name(), Err: err})
		}
	}
	if err := c.close(); err != nil {
		left.Disks = append(left.Disks, source.DiskNotReset{Disk: "(all)", Err: fmt.Errorf("close images: %w", err)})
	}
	if len(left.Disks) > 0 {
		return &left
	}
	return nil
}

func (d *frozenDisk) commit() error {
	if !d.writes() {
		return nil
	}
	if d.readers != nil {
		return d.readers
	}
	var all error
	for range commitAttempts {
		err := d.edit()
		if err == nil {
			return nil
		}
		all = errors.Join(all, err)
	}
	return all
}

// edit plans from what the image says now, so that it can be repeated.
func (d *frozenDisk) edit() error {
	f := d.image.top().io
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return err
	}
	list, err := readDirectory(f, h)
	if err != nil {
		return err
	}
	var ours []bitmap
	for _, b := range list {
		if name, ok := ident.ParseBitmapName(b.Name); ok && name.Family == d.base.Family {
			ours = append(ours, bitmap{Bitmap: b, name: name})
		}
	}
	return d.plan(ours, h).apply(f)
}

// Abort closes everything and leaves all bits.
func (c *cut) Abort(context.Context) error { return c.close() }

// Leave is Abort: nothing was written yet.
func (c *cut) Leave(ctx context.Context) error { return c.Abort(ctx) }

// close ends the cut, and with the descriptors the locks.
func (c *cut) close() error {
	if c.ended {
		return nil
	}
	c.ended = true
	c.watch.end()
	var all error
	for _, d := range c.disks {
		all = errors.Join(all, d.image.close())
	}
	return all
}
