package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/restore"
)

// restoreFlags say what goes where.
type restoreFlags struct {
	machine string
	point   string
	disk    string
	to      string
	format  string
	extras  string
	force   bool
}

func (p *program) restoreCommand() *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore --machine NAME [--point POINT] [--disk NAME] [--to PATH] [--extras DIR]",
		Short: "Restore one disk of a point, or all of them, and the machine's definition",
		Long: `Restore a point. With one disk, PATH is a file, a block device, or - for standard output; with several disks and no
--disk it is a folder that takes NAME.raw or NAME.qcow2 for each.

A point is named by its id, a prefix of it that no other point has, a time such as 2026-01-31T12:00 (the last point at or
before it), or latest. A qcow2 target carries on: the next backup of it is incremental.

--extras DIR takes the small files that a point has besides its disks: the definition and the firmware variables of a libvirt
domain. It goes with --to or alone.

A file appears under its name when it is whole. Where a point is damaged, the ranges that are lost are named, what could be read
is kept as PATH.partial, and the exit code is 21.`,
		Example: `  qbackup restore --machine web1 --to /var/lib/libvirt/images/web1.qcow2 --format qcow2
  qbackup restore --machine web1 --point 2026-01-31 --disk root --to /dev/vg0/web1 --force
  qbackup restore --machine web1 --extras /root/web1 --to /var/lib/libvirt/images
  qbackup restore --machine web1 --to - | zstd > web1.raw.zst`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.restore(c.Context(), f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.machine, "machine", "", "the machine")
	flags.StringVar(&f.point, "point", "latest", "id, prefix, time, or latest")
	flags.StringVar(&f.disk, "disk", "", "one disk; default: all")
	flags.StringVar(&f.to, "to", "", "where to: file, block device, folder, or - for standard output")
	flags.StringVar(&f.extras, "extras", "", "folder for the machine's definition and firmware variables")
	flags.StringVar(&f.format, "format", "", "raw or qcow2 (default raw; must be said when the target is called .qcow2)")
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"raw", "qcow2"}, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that is not there
	flags.BoolVar(&f.force, "force", false, "replace a file that exists, write to a block device")
	return c
}

func (f restoreFlags) check() (ident.MachineName, error) {
	switch {
	case f.machine == "":
		return "", usagef("--machine is missing")
	case f.to == "" && f.extras == "":
		return "", usagef("--to is missing")
	case f.to == "" && f.disk != "":
		return "", usagef("--disk goes with --to")
	case f.format == "" && strings.HasSuffix(f.to, ".qcow2"):
		return "", usagef("%s would become a raw file; say --format qcow2, or --format raw if that is meant", f.to)
	case f.format != "" && f.format != "raw" && f.format != "qcow2":
		return "", usagef("--format is raw or qcow2, not %q", f.format)
	case f.to == "-" && f.format == "qcow2":
		return "", usagef("standard output takes --format raw only")
	}
	machine, err := ident.ParseMachineName(f.machine)
	if err != nil {
		return "", usagef("%v", err)
	}
	return machine, nil
}

// restoredDisk is what restore --json says of each disk.
type restoredDisk struct {
	MessageType string            `json:"message_type"` // "restored"
	Machine     ident.MachineName `json:"machine"`
	Point       ident.RunID       `json:"point"`
	Disk        string            `json:"disk"`
	To          string            `json:"to"`
	Format      string            `json:"format"`
	SizeBytes   int64             `json:"size_bytes"`
	DataBytes   int64             `json:"data_bytes"`
	ZeroBytes   int64             `json:"zero_bytes"`
	Seconds     float64           `json:"duration_seconds"`
}

func (p *program) restore(ctx context.Context, f restoreFlags) error {
	machine, err := f.check()
	if err != nil {
		return err
	}
	if f.format == "" {
		f.format = "raw"
	}
	repository, err := p.openRepository(ctx)
	if err != nil {
		return err
	}
	run, err := findPoint(ctx, repository, machine, f.point)
	if err != nil {
		return err
	}
	point, err := repository.OpenPoint(ctx, machine, run)
	if err != nil {
		return err
	}
	if f.extras != "" {
		if err := p.restoreExtras(point, f.extras, f.force); err != nil {
			return fmt.Errorf("restore extra files of point %s: %w", run, err)
		}
	}
	if f.to == "" {
		return nil
	}
	return p.restoreDisks(ctx, point, f)
}

// restoreDisks restores what was chosen; a disk that fails does not keep the others.
func (p *program) restoreDisks(ctx context.Context, point *repo.Point, f restoreFlags) error {
	disks, err := f.chooseDisks(point.Record())
	if err != nil {
		return err
	}
	run := point.Record().Run
	info, err := os.Stat(f.to)
	exists := err == nil
	folder := len(disks) > 1 || exists && info.IsDir()
	if folder {
		if f.to == "-" {
			return usagef("the point has %d disks; choose one with --disk for standard output", len(disks))
		}
		if err := os.MkdirAll(f.to, 0o700); err != nil {
			return fmt.Errorf("make the folder for the disks: %w", err)
		}
	}
	var errs []error
	for _, d := range disks {
		to := f.to
		if folder {
			to = filepath.Join(f.to, d.Name+"."+f.format)
		}
		if err := p.restoreDisk(ctx, point, d, to, f); err != nil {
			errs = append(errs, fmt.Errorf("restore disk %s of point %s: %w", d.Name, run, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if folder && !exists && len(errs) > 0 {
		_ = os.Remove(f.to) // it stays when there is something in it
	}
	return errors.Join(errs...)
}

// chooseDisks gives the disks to restore. A disk that the point lacks is an error, never left out in silence.
func (f restoreFlags) chooseDisks(record *format.Record) ([]*format.DiskRecord, error) {
	var disks []*format.DiskRecord
	for i := range record.Disks {
		d := &record.Disks[i]
		if f.disk != "" && d.Name != f.disk {
			continue
		}
		if d.Mode == format.ModeMissing {
			return nil, fmt.Errorf("disk %s is missing in point %s (%s); name another disk with --disk or another point", d.Name, record.Run, d.Error)
		}
		disks = append(disks, d)
	}
	if len(disks) == 0 {
		var names []string
		for _, d := range record.Disks {
			names = append(names, d.Name)
		}
		return nil, fmt.Errorf("point %s has no disk %q; it has %s", record.Run, f.disk, strings.Join(names, ", "))
	}
	return disks, nil
}

func (p *program) restoreDisk(ctx context.Context, point *repo.Point, d *format.DiskRecord, to string, f restoreFlags) error {
	disk, err := point.Disk(d.Name)
	if err != nil {
		return err
	}
	started := time.Now()
	stats := new(restore.Stats)
	options := restore.Options{Stats: stats, Salvage: func(err error) bool { return errors.Is(err, repo.ErrDamaged) }}
	if to == "-" {
		return restore.Stream(ctx, disk, p.stdout, options)
	}
	file, err := restore.CreateFile(to, d.SizeBytes, f.force)
	if err != nil {
		return err
	}
	stop := p.showRestore(d.Name, d.SizeBytes, stats)
	err = fill(ctx, disk, file, point.Record(), f.format, options)
	stop()
	var lost *restore.LostError
	switch {
	case errors.As(err, &lost):
		if keepErr := file.Keep(); keepErr != nil {
			return errors.Join(err, keepErr)
		}
		return fmt.Errorf("%w; what could be read is in %s", err, file.Partial())
	case err != nil:
		if discardErr := file.Discard(); discardErr != nil && !errors.Is(discardErr, fs.ErrNotExist) {
			return errors.Join(err, discardErr)
		}
		return err
	}
	if err := file.Publish(); err != nil {
		if errors.Is(err, restore.ErrExists) {
			return fmt.Errorf("%w; the disk is in %s", err, file.Partial())
		}
		return errors.Join(err, file.Discard())
	}
	return p.reportRestored(restoredDisk{
		MessageType: "restored", Machine: point.Record().Machine, Point: point.Record().Run, Disk: d.Name, To: to, Format: f.format,
		SizeBytes: d.SizeBytes, DataBytes: stats.Written.Load(), ZeroBytes: stats.Zero.Load(), Seconds: time.Since(started).Seconds(),
	})
}

// fill writes the disk into the file in the format that was asked for. A qcow2 image gets an empty bitmap that continues
// the point.
func fill(ctx context.Context, disk *repo.Disk, file *restore.File, record *format.Record, as string, o restore.Options) error {
	if as == "raw" {
		target, err := restore.NewRawTarget(file, disk.Size())
		if err != nil {
			return err
		}
		return restore.Run(ctx, disk, target, o)
	}
	// The name says twice which point it is: the image is that point, in another file and shape than it was read from.
	name := ident.BitmapName{Family: record.MachineID.Family(), Stamp: record.Run, Prev: record.Run}
	target, err := restore.NewQcow2Target(file, disk.Size(), qcow2.BitmapSpec{
		Name: name.String(), GranularityBytes: format.DefaultBlockBytes, Enabled: true,
	})
	if err != nil {
		return err
	}
	err = restore.Run(ctx, disk, target, o)
	if lost := new(restore.LostError); err != nil && !errors.As(err, &lost) {
		return err
	}
	if finishErr := target.Finish(); err == nil || finishErr != nil {
		return errors.Join(err, finishErr)
	}
	return errors.Join(err, target.DropBitmap())
}

func (p *program) reportRestored(r restoredDisk) error {
	if p.json {
		return p.printJSON(r)
	}
	p.say("%s: point %s to %s: %s of data, %s of zeros in %.1f s", r.Disk, r.Point, r.To, size(r.DataBytes), size(r.ZeroBytes), r.Seconds)
	return nil
}
