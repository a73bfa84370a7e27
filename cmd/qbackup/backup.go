package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/target"
)

// backupFlags are what a backup can be told.
type backupFlags struct {
	machine machineFlags
	rescan  bool
	adopt   bool
}

func (p *program) backupCommand() *cobra.Command {
	var f backupFlags
	c := &cobra.Command{
		Use:   "backup [flags] {[NAME=]IMAGE... | --qmp SOCKET [[NAME=]IMAGE...] | --libvirt DOMAIN}",
		Short: "Make a restore point of a machine, running or off",
		Long: `Make a restore point of one machine: all its disks together, at one instant. Only what the bitmaps call dirty is
read; the first run, and every run that cannot trust a bitmap, reads everything and says why. When the point is durable the
bitmaps are emptied.

A machine that is off is given by its images. An image is a qcow2 file, or with raw:IMAGE a raw one. NAME= names the disk; otherwise
it is called after its file. A machine that starts while its images are read ends the run; nothing is published and nothing lost.

A machine that runs is given by the QMP socket of its QEMU with --qmp. All disks that the guest may write to are taken, or those
whose images are named. With images named, a machine whose socket nobody answers is backed up from them, so that one command line does
for a machine that is sometimes off. The guest goes on; what it overwrites meanwhile is kept in --scratch-dir until the backup ends.

A machine of libvirt is given by its domain with --libvirt, whether it runs or is off: libvirt is asked for its disks, which are called by
their targets (vda), and its definition and NVRAM are stored in the point, too (restore --extras). Without --machine it is called after
the domain.

The line of a disk says: what was dirty (everything, where no bitmap is used), what of it was read because the image holds data
there, what is zero, what was read and equals the point before, and what was stored, compressed.`,
		Example: `  qbackup backup /var/lib/libvirt/images/web1.qcow2
  qbackup backup --machine db root=/vm/db-root.qcow2 data=/vm/db-data.qcow2
  qbackup backup --qmp /run/vm/web1.qmp --machine web1
  qbackup backup --qmp /run/vm/db.qmp --machine db root=/vm/db-root.qcow2 data=/vm/db-data.qcow2
  qbackup backup --libvirt web1 --freeze require
  qbackup backup --allow-dir /vm/templates /vm/clone.qcow2
  qbackup backup --hold raw:/dev/vg0/mail`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return p.backup(c.Context(), f, args) },
	}
	f.machine.add(c)
	flags := c.Flags()
	flags.BoolVar(&f.rescan, "rescan", false, "read everything, whatever the bitmaps say, and store what differs")
	flags.BoolVar(&f.adopt, "adopt", false, "take over a machine name although nothing shows that these are its disks")
	return c
}

func (p *program) backup(ctx context.Context, f backupFlags, args []string) (err error) {
	if !f.machine.spec.DryRun {
		if err := p.thaw(ctx, false); err != nil {
			p.warn("%v", err)
		}
	}
	m, err := p.host().Choose(ctx, f.machine.named(args))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	local, err := p.openState(f.machine.spec.DryRun)
	if err != nil {
		return err
	}
	e := agent.Ending{Machine: m.Name, Start: time.Now()}
	e.Summary, e.Err = p.backupMachine(ctx, f, m, local)
	e.End, e.Class = time.Now(), exitClass(e.Err)
	if !f.machine.spec.DryRun && !errors.Is(e.Err, state.ErrBusy) {
		p.remember(local.Results(p.repository), e)
		if p.configured().Metrics.Textfile != "" {
			machines, problems := p.machines(ctx)
			p.writeMetrics(local, machines, len(problems))
		}
	}
	if reportErr := p.reportBackup(e.Summary, e.Err); e.Err == nil {
		return reportErr
	}
	return e.Err
}

func (p *program) backupMachine(ctx context.Context, f backupFlags, m *target.Target, local *state.State) (agent.Summary, error) {
	none := agent.Summary{MessageType: "summary", Machine: m.Name, DryRun: f.machine.spec.DryRun, Disks: []agent.DiskSummary{}}
	openCache := p.openCache
	if f.machine.spec.DryRun {
		openCache = noCache
	}
	repository, err := p.openRepositoryWith(ctx, openCache)
	if err != nil {
		return none, err
	}
	if !f.machine.spec.DryRun {
		if err := agent.CheckStore(ctx, repository, local.Repository(repository.ID()), func(err error) { p.note("%v", err) }); err != nil {
			return none, err
		}
	}
	job := agent.Job{
		Machine: m.Name, Repository: repository, State: local.Repository(repository.ID()), Open: m.Open,
		Rescan: f.rescan, Adopt: f.adopt, DryRun: f.machine.spec.DryRun,
	}
	stats := new(agent.Stats)
	stop := p.showBackup(stats)
	summary, err := agent.Backup(ctx, job, agent.Options{Stats: stats, Tool: "qbackup " + programVersion()})
	stop()
	if ctx.Err() != nil && summary.Point.IsZero() && err != nil && !errors.Is(err, repo.ErrUnknownOutcome) {
		err = fmt.Errorf("no point was made, and all bits stay: %w", err)
	}
	return summary, err
}

// reportBackup prints the summary: one JSON line, or a line for each disk.
func (p *program) reportBackup(s agent.Summary, err error) error {
	for _, a := range s.Alarms {
		p.warn("%s", a.Text)
	}
	for _, d := range s.NotReset {
		p.note("disk %s: the bitmap was not reset, the next run does it: %s", d.Disk, d.Error)
	}
	if p.json {
		return p.printJSON(newSummaryLine(s))
	}
	// Without a point there is nothing to say of its disks, but for what a dry run is for.
	switch {
	case s.DryRun && err == nil:
		for _, d := range s.Disks {
			p.say("%s", plannedLine(d))
		}
		p.say("dry run: nothing was written")
	case !s.Point.IsZero():
		for _, d := range s.Disks {
			p.say("%s", diskLine(d))
		}
		p.say("point %s of machine %s in %.1f s", s.Point, s.Machine, s.DurationSeconds)
	}
	return nil
}

// summaryLine is the last line of backup --json: the summary, with null where no point was made.
type summaryLine struct {
	agent.Summary
	Point *ident.RunID `json:"point"`
}

func newSummaryLine(s agent.Summary) summaryLine {
	line := summaryLine{Summary: s}
	if !s.Point.IsZero() {
		line.Point = &s.Point
	}
	return line
}

// plannedLine says what would be read of a disk.
func plannedLine(d agent.DiskSummary) string {
	if d.Error != "" {
		return diskLine(d)
	}
	return fmt.Sprintf("%s: up to %s of %s would be read", howLine(d), size(d.DirtyBytes), size(d.SizeBytes))
}

func diskLine(d agent.DiskSummary) string {
	if d.Error != "" {
		return fmt.Sprintf("%s: missing: %s", d.Name, d.Error)
	}
	return howLine(d) + fmt.Sprintf(": %s of %s dirty, %s read, %s zero, %s unchanged, %s stored",
		size(d.DirtyBytes), size(d.SizeBytes), size(d.ReadBytes), size(d.ZeroBytes), size(d.SkippedBytes), size(d.StoredBytes))
}

// howLine says how a disk is backed up, and why not incrementally.
func howLine(d agent.DiskSummary) string {
	line := fmt.Sprintf("%s: %s", d.Name, d.Mode)
	if d.Reason != "" {
		line += fmt.Sprintf(" (%s", d.Reason)
		if d.Detail != "" {
			line += ": " + d.Detail
		}
		line += ")"
	}
	return line
}
