package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/offline"
)

// backupFlags are what a backup can be told.
type backupFlags struct {
	machine   string
	rescan    bool
	hold      bool
	adopt     bool
	allowDirs []string
	dryRun    bool
}

func (p *program) backupCommand() *cobra.Command {
	var f backupFlags
	c := &cobra.Command{
		Use:   "backup [flags] [NAME=]IMAGE...",
		Short: "Make a restore point of the images of a machine that is off",
		Long: `Make a restore point of one machine: all its images together, at one instant. Only what the bitmaps call dirty is
read; the first run, and every run that cannot trust a bitmap, reads everything and says why. When the point is durable the
bitmaps are emptied.

An image is a qcow2 file, or with raw:IMAGE a raw one. NAME= names the disk; otherwise it is called after its file. A
machine that starts while its images are read ends the run; nothing is published and nothing lost.

The line of a disk says: what was dirty (everything, where no bitmap is used), what of it was read because the image holds data
there, what is zero, what was read and equals the point before, and what was stored, compressed.`,
		Example: `  qbackup backup /var/lib/libvirt/images/web1.qcow2
  qbackup backup --machine db root=/vm/db-root.qcow2 data=/vm/db-data.qcow2
  qbackup backup --allow-dir /vm/templates /vm/clone.qcow2
  qbackup backup --hold raw:/dev/vg0/mail`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return p.backup(c.Context(), f, args) },
	}
	flags := c.Flags()
	flags.StringVar(&f.machine, "machine", "", "name of the machine; default: the file name of a single image")
	flags.BoolVar(&f.rescan, "rescan", false, "read everything, whatever the bitmaps say, and store what differs")
	flags.BoolVar(&f.hold, "hold", false, "keep the machine from starting for the whole run, not only its last moment")
	flags.BoolVar(&f.adopt, "adopt", false, "take over a machine name although nothing shows that these are its disks")
	flags.StringArrayVar(&f.allowDirs, "allow-dir", nil, "folder in which an image's backing and data files may lie (repeatable)")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "say what would be read, and write nothing anywhere")
	return c
}

func (p *program) backup(ctx context.Context, f backupFlags, args []string) error {
	images, err := parseImages(args)
	if err != nil {
		return err
	}
	machine, err := machineName(f.machine, images)
	if err != nil {
		return err
	}
	openCache := p.openCache
	if f.dryRun {
		openCache = noCache
	}
	repository, err := p.openRepositoryWith(ctx, openCache)
	if err != nil {
		return err
	}
	local, err := p.openState(f.dryRun)
	if err != nil {
		return err
	}
	if !f.dryRun {
		if err := p.checkStore(ctx, repository, local.Repository(repository.ID())); err != nil {
			return err
		}
	}
	job := agent.Job{
		Machine: machine, Repository: repository, State: local.Repository(repository.ID()),
		Open: func(family ident.FamilyID) source.Machine {
			return offline.New(images, offline.Options{Family: family, AllowDirs: f.allowDirs, Hold: f.hold})
		},
		Rescan: f.rescan, Adopt: f.adopt, DryRun: f.dryRun,
	}
	stats := new(agent.Stats)
	stop := p.showBackup(stats)
	summary, err := agent.Backup(ctx, job, agent.Options{Stats: stats, Tool: "qbackup " + programVersion()})
	stop()
	if ctx.Err() != nil && summary.Point.IsZero() && err != nil && !errors.Is(err, repo.ErrUnknownOutcome) {
		err = fmt.Errorf("no point was made, and all bits stay: %w", err)
	}
	if reportErr := p.reportBackup(summary, err); err == nil {
		err = reportErr
	}
	return err
}

// parseImages reads [NAME=][raw:]IMAGE. A name is asked for where two files are called the same.
func parseImages(args []string) ([]offline.Image, error) {
	var images []offline.Image
	seen := map[string]bool{}
	for _, arg := range args {
		name, path, named := strings.Cut(arg, "=")
		if !named || strings.Contains(name, "/") {
			named, path = false, arg
		}
		var image offline.Image
		image.Path, image.Raw = strings.CutPrefix(path, "raw:")
		if image.Path == "" {
			return nil, usagef("%q names no image", arg)
		}
		if image.Name = name; !named {
			image.Name = stem(image.Path)
		}
		if err := ident.CheckDiskName(image.Name); err != nil {
			return nil, usagef("%v; give the disk a name: NAME=%s", err, path)
		}
		if seen[image.Name] {
			return nil, usagef("two disks are called %s; name them: NAME=IMAGE", image.Name)
		}
		seen[image.Name] = true
		images = append(images, image)
	}
	return images, nil
}

// stem is the name of a file without folder and last ending.
func stem(path string) string {
	base := filepath.Base(path)
	return strings.TrimSuffix(base, filepath.Ext(base))
}

func machineName(flag string, images []offline.Image) (ident.MachineName, error) {
	if flag == "" {
		if len(images) != 1 {
			return "", usagef("several images are one machine; name it with --machine")
		}
		flag = strings.ToLower(stem(images[0].Path))
	}
	name, err := ident.ParseMachineName(flag)
	if err != nil {
		return "", usagef("%v; choose another with --machine", err)
	}
	return name, nil
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
