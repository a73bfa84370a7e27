package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/upload"
)

// plan is what will be done with each disk of a run.
type plan struct {
	disks []*diskPlan
	// prove says that the machine's name is taken over only if enough blocks
	// equal its newest point.
	prove bool
	// qemu is the version of the QEMU that runs the machine, empty when it is off.
	qemu   string
	extras *extras // nil: none
}

// diskPlan is one disk of a plan.
type diskPlan struct {
	ordinal  int
	evidence source.DiskEvidence
	Decision
	base  *repo.Disk  // the disk in the point Compare; nil: nothing to compare with
	point *repo.Point // that point

	stats      *upload.DiskStats
	dirtyBytes int64
	root       format.MapRoot
}

// usable lists the disks that can be read.
func (p *plan) usable() []*diskPlan {
	var list []*diskPlan
	for _, d := range p.disks {
		if d.evidence.Err == nil {
			list = append(list, d)
		}
	}
	return list
}

// disk finds a disk by name.
func (p *plan) disk(name string) *diskPlan {
	for _, d := range p.disks {
		if d.evidence.Name == name {
			return d
		}
	}
	return nil
}

// missing is a *SomeFailedError when disks could not be read.
func (p *plan) missing() error {
	var failed []DiskError
	for _, d := range p.disks {
		if d.evidence.Err != nil {
			failed = append(failed, DiskError{Disk: d.evidence.Name, Err: d.evidence.Err})
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return &SomeFailedError{Disks: failed}
}

// holds lists the points that must not vanish while the run lives: what its
// increments build on and what its rescans refer to.
func (p *plan) holds() []format.Base {
	var bases []format.Base
	for _, d := range p.usable() {
		if !d.Compare.IsZero() {
			bases = append(bases, format.Base{Disk: d.evidence.Name, Run: d.Compare})
		}
	}
	return bases
}

// sourceBases tells the source what to do with each disk.
func (p *plan) sourceBases(family ident.FamilyID) []source.Base {
	var bases []source.Base
	for _, d := range p.usable() {
		bases = append(bases, source.Base{Disk: d.evidence.Name, Run: d.Base, Family: family, Extra: d.Extra, AddFamily: d.AddFamily})
	}
	return bases
}

// inspect learns who the machine is, opens its source, and looks at its disks.
func (b *backup) inspect(ctx context.Context) (source.Evidence, error) {
	if err := b.identify(ctx); err != nil {
		return source.Evidence{}, err
	}
	evidence, err := b.source.Inspect(ctx)
	if err != nil {
		return source.Evidence{}, fmt.Errorf("inspect machine %s: %w", b.job.Machine, err)
	}
	if len(evidence.Disks) == 0 {
		return source.Evidence{}, fmt.Errorf("%w: the machine has no disk", ErrJob)
	}
	var errs []error
	for i := range evidence.Disks {
		d := &evidence.Disks[i]
		if err, found := b.lessons.unreadable[d.Name]; found && d.Err == nil {
			d.Err = err
		}
		if d.Err == nil {
			continue
		}
		err := fmt.Errorf("disk %s: %w", d.Name, d.Err)
		// A machine that runs is one cut or none: the disks it has not locked
		// would be of another instant.
		if errors.Is(err, source.ErrHeld) || errors.Is(err, source.ErrVMStarted) {
			return source.Evidence{}, err
		}
		errs = append(errs, err)
	}
	if len(errs) == len(evidence.Disks) {
		return source.Evidence{}, errors.Join(errs...)
	}
	return evidence, nil
}

// chooseBases decides for each disk how it will be backed up.
func (b *backup) chooseBases(ctx context.Context, evidence source.Evidence) (*plan, error) {
	k, err := b.learnPoints(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.settleLocal(ctx, k); err != nil {
		return nil, err
	}
	p := &plan{qemu: evidence.QEMU}
	if p.extras, err = newExtras(evidence.Extras, b.job.Repository.BlockBytes()); err != nil {
		return nil, err
	}
	if p.prove, err = b.mustProve(ctx, evidence, k); err != nil {
		return nil, err
	}
	for i, e := range evidence.Disks {
		d := &diskPlan{ordinal: i, evidence: e}
		p.disks = append(p.disks, d)
		if e.Err != nil {
			continue
		}
		in, err := b.baseInput(ctx, k, e)
		if err != nil {
			return nil, fmt.Errorf("choose base of disk %s: %w", e.Name, err)
		}
		if d.Decision, err = b.decide(ctx, k, in); err != nil {
			return nil, fmt.Errorf("choose base of disk %s: %w", e.Name, err)
		}
		if !d.Busy.IsZero() {
			return nil, &RunningError{Machine: b.job.Machine, Run: d.Busy, Who: d.BusyDetail}
		}
		b.alarm(d.Alarms...)
		if !d.Compare.IsZero() {
			if d.base, err = k.disk(ctx, d.Compare, e.Name); err != nil {
				return nil, fmt.Errorf("open point %s to build on: %w", d.Compare, err)
			}
			d.point = k.opened[d.Compare]
		}
		d.dirtyBytes = e.SizeBytes
		if d.Mode == format.ModeIncremental {
			d.dirtyBytes = in.estimate()
		}
	}
	if p.prove && len(p.holds()) == 0 {
		return nil, b.otherMachine("its points have none of these disks")
	}
	if err := b.alarmGone(ctx, k, evidence); err != nil {
		return nil, err
	}
	b.summarise(p)
	return p, nil
}

// decide applies the rule, and once more when the base it chose turns out to
// hold blocks that a verification condemned.
func (b *backup) decide(ctx context.Context, k *knowledge, in BaseInput) (Decision, error) {
	d := ChooseBase(in)
	if d.Mode != format.ModeIncremental || !d.Busy.IsZero() {
		return d, nil
	}
	why, err := k.damagedBlock(ctx, d.Base, in.Disk)
	if err != nil || why == "" {
		return d, err
	}
	b.alarm(Alarm{Kind: AlarmDamage, Disk: in.Disk, Text: fmt.Sprintf("point %s: %s; everything is read again, and what was damaged is stored again", d.Base, why)})
	in.Quarantine = ReasonBaseDamaged
	return ChooseBase(in), nil
}

// estimate is what the bitmaps say will be read, before anything is read.
func (in *BaseInput) estimate() int64 {
	n := max(in.family().dirtyBytes(), 0)
	for _, e := range grownTail(in.Stamps[in.Newest].sizeBytes(in.SizeBytes), in.SizeBytes, in.BlockBytes) {
		n += e.Len
	}
	return min(n, in.SizeBytes)
}

func (s Stamp) sizeBytes(otherwise int64) int64 {
	if s.Disk == nil {
		return otherwise
	}
	return s.Disk.SizeBytes
}

// summarise shows what is planned; a finished run replaces it.
func (b *backup) summarise(p *plan) {
	b.summary.Disks = b.summary.Disks[:0]
	for _, d := range p.disks {
		b.summary.Disks = append(b.summary.Disks, diskSummary(d.record(), d.Detail))
	}
}

// alarmGone says, once, that a disk of the newest point is not among those of this
// backup: it was taken out of the machine, or forgotten on the command line, or is
// called otherwise now.
func (b *backup) alarmGone(ctx context.Context, k *knowledge, evidence source.Evidence) error {
	for _, run := range slices.Backward(k.points) {
		record, err := k.recordOf(ctx, run)
		if err != nil {
			return err
		}
		if record == nil {
			continue // an ABORT, or one that cannot be read
		}
		for i := range record.Disks {
			if name := record.Disks[i].Name; evidence.Disk(name) == nil {
				b.alarm(Alarm{Kind: AlarmDiskGone, Disk: name, Text: fmt.Sprintf(
					"disk %s of point %s is not in this backup; if the machine still has it, name it too, and by that name", name, run)})
			}
		}
		return nil
	}
	return nil
}

// baseInput gathers what the choice of a base depends on.
func (b *backup) baseInput(ctx context.Context, k *knowledge, e source.DiskEvidence) (BaseInput, error) {
	in := BaseInput{
		Disk: e.Name, Family: b.machine.ID.Family(),
		Rescan: b.job.Rescan, Quarantine: b.lessons.quarantine[e.Name],
		Version: e.Version, BitmapsUsable: e.BitmapsUsable, WhyNot: e.Why, FamilyInLayers: e.FamilyInLayers,
		SizeBytes: e.SizeBytes, Facts: e.Facts, BlockBytes: b.job.Repository.BlockBytes(), BitmapsPossible: e.BitmapsPossible,
		Stamps: map[ident.RunID]Stamp{}, Bases: map[ident.RunID]ident.RunID{},
		Local: b.maybeNotReset(),
	}
	for _, v := range e.Bitmaps {
		name, ok := ident.ParseBitmapName(v.Name)
		if !ok || name.Family != in.Family {
			continue
		}
		in.Bitmaps = append(in.Bitmaps, bitmapOf(name, v))
	}
	for _, stamp := range in.family().stamps() {
		if err := b.addStamp(ctx, k, &in, stamp); err != nil {
			return BaseInput{}, err
		}
	}
	newest, err := k.newest(ctx, e.Name)
	if err != nil {
		return BaseInput{}, err
	}
	in.Newest = newest
	if !newest.IsZero() {
		err = b.addStamp(ctx, k, &in, newest)
	}
	if err == nil {
		err = k.addDescent(ctx, &in)
	}
	return in, err
}

// maybeNotReset lists the runs of this host whose bits may not be reset although
// their points stand: an image that does not continue them is no older copy.
func (b *backup) maybeNotReset() []ident.RunID {
	runs := []ident.RunID{b.journal.Committed}
	if b.journal.Last != nil {
		runs = append(runs, b.journal.Last.Run)
	}
	return slices.DeleteFunc(runs, func(run ident.RunID) bool { return run == b.journal.Reset })
}

func (b *backup) addStamp(ctx context.Context, k *knowledge, in *BaseInput, stamp ident.RunID) error {
	if _, known := in.Stamps[stamp]; known {
		return nil
	}
	s, err := k.stamp(ctx, stamp, in.Disk)
	if err != nil {
		return err
	}
	if s.State == StampDamaged {
		b.alarm(Alarm{Kind: AlarmDamage, Disk: in.Disk, Text: fmt.Sprintf("point %s cannot be built on: %s", stamp, s.Detail)})
	}
	in.Stamps[stamp] = s
	if s.Disk != nil {
		in.Bases[stamp] = s.Disk.Base
	}
	return nil
}
