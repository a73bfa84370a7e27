package agent

import (
	"context"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
)

// backup is one call of Backup and what it learned in its attempts.
type backup struct {
	job     Job
	o       Options
	started time.Time

	local   *state.Machine
	journal state.Journal // as it was found; zero when there was none
	machine format.Machine
	isNew   bool // the repository does not know the machine yet
	source  source.Machine

	lessons lessons
	alarms  []Alarm
	summary Summary
}

// Backup makes one point of a machine, or none. An error that is an
// ErrSomeFailed goes with a point that lacks disks; after every other error
// there is no point, or, with repo.ErrUnknownOutcome, nobody knows yet. Whatever
// the error, no bit is lost. The summary is as complete as the run got.
func Backup(ctx context.Context, job Job, o Options) (Summary, error) {
	if err := job.check(); err != nil {
		return Summary{}, err
	}
	b := newBackup(job, o.withDefaults())
	unlock, err := b.lock()
	if err != nil {
		return b.finish(err)
	}
	defer unlock()
	// What an attempt found out (a base was forgotten meanwhile, a bitmap lies, a
	// disk cannot be read) makes the next one choose otherwise.
	for range attemptsMax {
		err = b.attempt(ctx)
		if !b.learn(err) {
			return b.finish(err)
		}
	}
	return b.finish(giveUp(err))
}

// attempt is one run from beginning to end: inspect, choose bases, freeze,
// upload, sample, confirm, publish, commit.
func (b *backup) attempt(ctx context.Context) error {
	b.o.Stats.enter(PhaseInspect)
	evidence, err := b.inspect(ctx)
	if err != nil {
		return err
	}
	b.o.Stats.enter(PhaseChoose)
	plan, err := b.chooseBases(ctx, evidence)
	if err != nil || b.job.DryRun {
		return err
	}
	run, err := b.begin(ctx, plan)
	if err != nil {
		return err
	}
	// Until its record is sent, a run that fails is known to be dead, and says so.
	dead := true
	defer func() {
		if dead {
			b.abandon(ctx, run)
		}
	}()

	b.o.Stats.enter(PhaseFreeze)
	cut, err := b.freeze(ctx, run, plan)
	if err != nil {
		return err
	}
	b.o.Stats.hold(cut)
	// After Commit both do nothing.
	defer func() {
		if dead {
			_ = cut.Abort(context.WithoutCancel(ctx))
		} else {
			_ = cut.Leave(context.WithoutCancel(ctx))
		}
	}()

	b.o.Stats.enter(PhaseUpload)
	record, err := b.upload(ctx, run, cut, plan)
	if err != nil {
		return err
	}
	b.o.Stats.enter(PhaseSample)
	if err := b.sample(ctx, cut, plan); err != nil {
		return err
	}
	b.o.Stats.enter(PhaseConfirm)
	if err := cut.Confirm(ctx); err != nil {
		return err
	}
	b.o.Stats.enter(PhasePublish)
	dead, err = b.publish(ctx, run, record)
	if err != nil {
		return err
	}
	b.o.Stats.enter(PhaseCommit)
	b.commit(ctx, cut, record, plan)
	b.o.Stats.enter(PhaseDone)
	return plan.missing()
}

func newBackup(job Job, o Options) *backup {
	return &backup{
		job: job, o: o, started: o.Clock(),
		local: job.State.Machine(job.Machine),
		lessons: lessons{
			quarantine: map[string]Reason{}, unreadable: map[string]error{}, given: map[ident.RunID]Stamp{},
		},
		summary: Summary{MessageType: "summary", Machine: job.Machine, DryRun: job.DryRun, Disks: []DiskSummary{}},
	}
}

// lock takes this host's lock on the machine. A dry run writes nothing, not even
// who holds a lock, and harms nobody by running beside another.
func (b *backup) lock() (func(), error) {
	unlock := func() {}
	if !b.job.DryRun {
		var err error
		if unlock, err = b.local.Lock(b.o.Clock()); err != nil {
			return nil, err
		}
	}
	b.journal, _ = b.local.Journal()
	if !b.mayAbort() {
		b.alarm(Alarm{Kind: AlarmCreateOnly, Text: "the store does not refuse to overwrite an object: points are safe, but slots of dead runs are left alone, and no other program may write there"})
	}
	return unlock, nil
}

// finish completes the summary.
func (b *backup) finish(err error) (Summary, error) {
	b.summary.Alarms = b.alarms
	b.summary.DurationSeconds = b.o.Clock().Sub(b.started).Seconds()
	return b.summary, err
}

// alarm raises an alarm once.
func (b *backup) alarm(alarms ...Alarm) {
	for _, a := range alarms {
		known := false
		for _, old := range b.alarms {
			known = known || old == a
		}
		if !known {
			b.alarms = append(b.alarms, a)
		}
	}
}

// run is an open run of the repository.
type run struct {
	*repo.Run
	id    ident.RunID
	at    time.Time // when it was begun
	cutAt time.Time // the point in time
}
