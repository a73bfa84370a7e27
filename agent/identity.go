package agent

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

// identify asks the repository who the machine is, or gives it an id, and opens
// its source. Nothing is written yet.
func (b *backup) identify(ctx context.Context) error {
	m, found, err := b.job.Repository.Machine(ctx, b.job.Machine)
	if err != nil {
		return fmt.Errorf("look up machine %s: %w", b.job.Machine, err)
	}
	if !found && b.isNew {
		return nil // a second attempt before the first one stored anything
	}
	if !found {
		id, err := ident.NewMachineID(b.o.Random)
		if err != nil {
			return err
		}
		m = format.Machine{
			Repository: b.job.Repository.ID(), Name: b.job.Machine, ID: id,
			Created: b.o.Clock(), FirstHost: b.o.Host, Tool: b.o.Tool,
		}
	}
	b.machine, b.isNew = m, !found
	b.source = b.job.Open(m.ID.Family())
	return nil
}

// mustProve tells whether a sample of blocks has to show that these are the
// machine's disks. Its bitmaps show it too, even in use, and so does a point that
// this host made of it: that it tried shows nothing. --adopt is the operator's
// word. A name without a point is free.
func (b *backup) mustProve(ctx context.Context, evidence source.Evidence, k *knowledge) (bool, error) {
	known := b.journal.MachineID == b.machine.ID && !b.journal.Committed.IsZero()
	if b.isNew || b.job.Adopt || known {
		return false, nil
	}
	family := b.machine.ID.Family()
	for _, d := range evidence.Disks {
		for _, v := range d.Bitmaps {
			if name, ok := ident.ParseBitmapName(v.Name); ok && name.Family == family {
				return false, nil
			}
		}
	}
	return k.anyPoint(ctx)
}

// prove compares a sample of blocks with data with the newest point: half of
// them must be equal.
func (b *backup) prove(ctx context.Context, cut source.Cut, p *plan) error {
	equal, total := 0, 0
	for _, disk := range cut.Disks() {
		d := p.disk(disk.Name())
		if d == nil || d.base == nil {
			continue
		}
		s := b.sampler(disk, d)
		probes, err := s.draw(ctx, proofBlocks)
		if err != nil {
			return fmt.Errorf("sample disk %s: %w", disk.Name(), err)
		}
		same, unknown, _, err := s.compare(ctx, probes)
		if err != nil {
			return fmt.Errorf("sample disk %s: %w", disk.Name(), err)
		}
		equal, total = equal+same, total+len(probes)-unknown
	}
	if total == 0 {
		return b.otherMachine("its newest point has no data to compare with")
	}
	if 2*equal < total {
		return b.otherMachine(fmt.Sprintf("no bitmap of it, nothing in this host's state, and %d of %d sampled blocks equal its newest point", equal, total))
	}
	return nil
}

func (b *backup) otherMachine(why string) error {
	return &OtherMachineError{Machine: b.job.Machine, FirstHost: b.machine.FirstHost, Why: why}
}
