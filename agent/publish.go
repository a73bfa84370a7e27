package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
)

// publishBudget bounds how long the images are held for the record to be stored:
// nobody can start the machine meanwhile (I8).
const publishBudget = time.Minute

// publish stores the record and reads it back. dead says that the run failed and
// is known to have no point; without it, and with an error, nobody knows.
func (b *backup) publish(ctx context.Context, r *run, record *format.Record) (dead bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, publishBudget)
	defer cancel()
	err = r.Publish(ctx, record)
	switch {
	case err == nil:
		b.summary.Point, b.summary.Time = r.id, record.Time
		b.summary.Disks = b.summary.Disks[:0]
		return false, nil
	case errors.Is(err, repo.ErrUnknownOutcome):
		return false, fmt.Errorf("publish point %s: %w; all bits stay, and the next run finds out", r.id, err)
	}
	return true, fmt.Errorf("publish point %s: %w", r.id, err)
}

// commit forgets the bits that the point holds. The point stands whatever comes
// of it: bits that stay are read again by the next run.
func (b *backup) commit(ctx context.Context, cut source.Cut, record *format.Record, p *plan) {
	for _, d := range p.disks {
		b.summary.Disks = append(b.summary.Disks, diskSummary(*record.Disk(d.evidence.Name), d.Detail))
	}
	err := cut.Commit(context.WithoutCancel(ctx))
	// Should the process die before this is written, the next run asks the slot.
	// That a host forgets is no reason to call the point a failure.
	outcome := state.OutcomeReset
	if err != nil {
		outcome = state.OutcomeCommitted
	}
	_ = b.local.End(record.Run, outcome, b.o.Clock())
	var stayed *source.NotReset
	switch {
	case err == nil:
	case errors.As(err, &stayed):
		b.summary.NotReset = notReset(stayed)
	default:
		for _, d := range p.usable() {
			b.summary.NotReset = append(b.summary.NotReset, DiskNotReset{Disk: d.evidence.Name, Error: err.Error()})
		}
	}
}

// abandon says that a failed run is dead, as well as it can within a short time.
// When it cannot, this host's next run does it.
func (b *backup) abandon(ctx context.Context, r *run) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonBudget)
	defer cancel()
	if b.mayAbort() && r.Abort(ctx, b.by("the run failed")) != nil {
		return
	}
	_ = b.local.End(r.id, state.OutcomeFailed, b.o.Clock())
}

// sample reads some clean blocks of each incremental disk again and compares
// them with what the new point will say of them, which is what its base says.
func (b *backup) sample(ctx context.Context, cut source.Cut, p *plan) error {
	for _, disk := range cut.Disks() {
		d := p.disk(disk.Name())
		if d.Mode != format.ModeIncremental {
			continue
		}
		s := b.sampler(disk, d)
		probes, err := s.draw(ctx, sampleDraws)
		if err != nil {
			return fmt.Errorf("sample disk %s: %w", disk.Name(), err)
		}
		if probes, err = clean(probes, disk.Extents(ctx), s.blockBytes); err != nil {
			return fmt.Errorf("sample disk %s: %w", disk.Name(), err)
		}
		probes = spread(probes, sampleBlocks)
		last, found, err := s.lastClean(ctx, func() extent.Seq { return disk.Extents(ctx) }, tailRuns)
		if err != nil {
			return fmt.Errorf("sample the end of disk %s: %w", disk.Name(), err)
		}
		if found {
			probes = append(probes, last)
		}
		reason := ReasonSample
		if d.Moved {
			others, err := swapProbes(ctx, s, disk, d)
			if err != nil {
				return fmt.Errorf("tell disk %s from the others: %w", disk.Name(), err)
			}
			if len(others) > 0 {
				probes, reason = append(probes, others...), ReasonSwapped
			}
		}
		_, _, differs, err := s.compare(ctx, probes)
		if err != nil {
			return fmt.Errorf("sample disk %s: %w", disk.Name(), err)
		}
		if differs != nil {
			return b.sampleAlarm(d, reason, differs.block*s.blockBytes)
		}
	}
	return nil
}

// spread keeps n probes, evenly.
func spread(probes []probe, n int) []probe {
	if len(probes) <= n {
		return probes
	}
	kept := make([]probe, 0, n)
	for i := range n {
		kept = append(kept, probes[i*len(probes)/n])
	}
	return kept
}

// swapProbes finds blocks that tell this disk from each other disk of the point,
// for an image that is not the file it was. An image that continues this point is
// one of the point's disks, or a copy of one, whatever it is called now and
// whether or not the others are backed up by this run.
func swapProbes(ctx context.Context, s *sampler, disk source.Disk, d *diskPlan) ([]probe, error) {
	var all []probe
	for _, other := range d.point.Record().Disks {
		if other.Name == d.evidence.Name || other.Mode == format.ModeMissing {
			continue
		}
		o, err := d.point.Disk(other.Name)
		if err != nil {
			return nil, err
		}
		probes, err := s.apart(ctx, o.Map(), o.Map().Blocks(), disk.Extents(ctx))
		if err != nil {
			return nil, err
		}
		all = append(all, probes...)
	}
	return all, nil
}

func (b *backup) sampleAlarm(d *diskPlan, reason Reason, offset int64) error {
	kind, text := AlarmSample, "blocks that no bitmap calls changed differ from point %s, first at byte %d of %s: the bitmaps are not believed, everything is read again"
	if reason == ReasonSwapped {
		kind, text = AlarmSwapped, "the image is not the file or device it was, or cannot be told from another, and its content is not that of point %s, first at byte %d of %s: it may be another disk's; everything is read again"
	}
	name := d.evidence.Name
	b.alarm(Alarm{Kind: kind, Disk: name, Text: fmt.Sprintf(text, d.Base, offset, name)})
	return &sampleError{disk: name, reason: reason, text: fmt.Sprintf("byte %d", offset)}
}

func (b *backup) sampler(disk source.Disk, d *diskPlan) *sampler {
	blockBytes := b.job.Repository.BlockBytes()
	m := d.base.Map()
	// Where the disk has another size than in the point, the last block of the
	// smaller one is padding there and not in the other: it is left out.
	whole := m.Blocks()
	if was := d.base.Size(); was != disk.Size() {
		whole = min(disk.Size(), was) / blockBytes
	}
	return &sampler{
		disk: disk, sizeBytes: disk.Size(), blockBytes: blockBytes, old: m, blocks: whole,
		hashes: b.job.Repository.FetchedHashes(b.job.Machine, d.point.Dependencies(), nil), sum: b.job.Repository.Hasher().Sum, random: b.o.Random,
	}
}
