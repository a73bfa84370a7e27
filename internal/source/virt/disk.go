package virt

import (
	"context"

	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/exported"
)

// frozenDisk is one disk of a cut. What it holds is that of its export.
type frozenDisk struct {
	*exported.Disk // nil until connected
	cut            *cut
	evidence       source.DiskEvidence
	base           source.Base
	facts          format.ImageFacts // as they were after the instant
}

var (
	_ source.Disk    = (*frozenDisk)(nil)
	_ source.Watched = (*frozenDisk)(nil)
)

func (d *frozenDisk) incremental() bool { return !d.base.Run.IsZero() }

// records says whether a new bitmap begins with the cut.
func (d *frozenDisk) records() bool { return d.incremental() || d.base.AddFamily }

// connect opens the disk's export, and learns how much is dirty.
func (d *frozenDisk) connect(ctx context.Context, socket string) error {
	spec := exported.Spec{
		Name: d.Name(), SizeBytes: d.evidence.SizeBytes, Socket: socket, Export: d.Name(), Extra: d.base.Extra,
		Explain: func(err error) error { return d.cut.explain(context.Background(), err) },
		Why:     func() error { return d.cut.watch.Err() },
	}
	if d.incremental() {
		spec.Bitmap = bitmapName
	}
	if d.cut.guard != nil {
		spec.Keep = d.cut.guard.Keep
	}
	var err error
	d.Disk, err = exported.Connect(ctx, spec)
	return err
}

// Name gives the disk's name in the domain.
func (d *frozenDisk) Name() string { return d.evidence.Name }

// Facts describe the image as it was after the instant.
func (d *frozenDisk) Facts() format.ImageFacts { return d.facts }
