package virt

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/offline"
)

// inspectOff looks at a domain that is off, in its files.
func (m *Machine) inspectOff(ctx context.Context, d *domain) (source.Evidence, error) {
	var images []offline.Image
	for _, one := range d.disks {
		if one.err == nil {
			images = append(images, offline.Image{Name: one.target, Path: one.path, Raw: one.raw()})
		}
	}
	files := offline.New(images, m.o.Offline)
	found, err := files.Inspect(ctx)
	if err != nil {
		return source.Evidence{}, err
	}
	e := source.Evidence{}
	for _, one := range d.disks {
		is := source.DiskEvidence{Name: one.target, Path: one.path, Err: one.err}
		if seen := found.Disk(one.target); seen != nil {
			is = *seen
		}
		e.Disks = append(e.Disks, is)
	}
	if e.Extras, err = d.extras(); err != nil {
		return source.Evidence{}, err
	}
	m.off = &off{domain: d, files: files}
	return e, nil
}

// freezeOff is Freeze for a domain that is off. One that is started meanwhile shows
// by QEMU's locks.
func (m *Machine) freezeOff(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	c, err := m.off.files.Freeze(ctx, run, bases)
	if err != nil {
		return nil, err
	}
	return &offCut{Cut: c, machine: m, off: m.off}, nil
}

// offCut is a cut in the files of a domain.
type offCut struct {
	source.Cut
	machine *Machine
	off     *off
}

// Commit resets the bits in the files, and then lets libvirt know which checkpoints
// that makes. That it could not be told is nothing that costs the next run more than
// to do the same.
func (c *offCut) Commit(ctx context.Context) error {
	err := c.Cut.Commit(ctx)
	ctx, cancel := teardownContext(ctx)
	defer cancel()
	_ = c.derive(ctx)
	return err
}

// derive looks into the files anew: a reset may have been left out for some disks.
func (c *offCut) derive(ctx context.Context) error {
	m := c.machine
	found, err := c.off.files.Inspect(ctx)
	if err != nil {
		return err
	}
	held := checkpoints{}
	var all error
	for _, d := range found.Disks {
		if d.Err != nil {
			// A machine that starts writes to its images, and does so with bitmaps
			// that nobody has seen.
			all = errors.Join(all, d.Err)
		}
		for _, b := range d.Bitmaps {
			if b.Ours {
				held.add(b.Family, d.Name)
			}
		}
	}
	if all != nil {
		return fmt.Errorf("look at the bitmaps again: %w", all)
	}
	list, err := m.virsh.do(ctx, listCheckpoints(c.off.uuid))
	if err != nil {
		return err
	}
	return m.derive(ctx, c.off.uuid, list, held)
}
