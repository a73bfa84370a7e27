package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/verify"
)

// verifyFlags say what is verified, and how deep.
type verifyFlags struct {
	machines []string
	data     bool
	record   bool
}

func (p *program) verifyCommand() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify [--machine NAME] [--data]",
		Short: "Look for damage in the repository, and say which disks and points it concerns",
		Long: `Read the repository and name every object that is missing or damaged, with the points and the ranges of their disks
that are lost with it (offset+length, in bytes). Without --data everything but the blocks themselves is read: documents,
manifests, maps and pack indexes, and every object that a point needs must be there with its size. With --data every block of
every point is read, decompressed and compared with its hash.

What is found damaged is marked in the repository: the next backup does not build on it, and stores again what is lost.
With --record=false nothing is written. What no point needs is never damage.

The exit code is 21 when damage was found.`,
		Example: `  qbackup verify
  qbackup verify --data --machine web1`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.verify(c.Context(), f) },
	}
	flags := c.Flags()
	flags.StringArrayVar(&f.machines, "machine", nil, "one machine (repeatable); default: all")
	flags.BoolVar(&f.data, "data", false, "read every block of every point")
	flags.BoolVar(&f.record, "record", true, "mark what is damaged in the repository, so that no backup builds on it")
	return c
}

// verified is what verify --json says.
type verified struct {
	MessageType string `json:"message_type"` // "verify"
	Data        bool   `json:"data"`
	*verify.Report
}

func (p *program) verify(ctx context.Context, f verifyFlags) error {
	options := verify.Options{Data: f.data, Record: f.record, Stats: new(verify.Stats), Tool: "qbackup " + programVersion()}
	for _, name := range f.machines {
		m, err := ident.ParseMachineName(name)
		if err != nil {
			return usagef("%v", err)
		}
		options.Machines = append(options.Machines, m)
	}
	options.Host, _ = os.Hostname() // without one the verdict says less
	repository, err := p.openRepository(ctx)
	if err != nil {
		return p.reportUnopened(err, f)
	}
	stop := p.showVerify(options.Stats)
	report, err := verify.Run(ctx, repository, options)
	stop()
	if err != nil {
		return err
	}
	p.rememberVerified(report, f)
	return p.reportVerified(report, f)
}

// rememberVerified writes down what a verification found, of the machines that this host backs up.
func (p *program) rememberVerified(r *verify.Report, f verifyFlags) {
	local, err := p.openState(false)
	if err != nil {
		p.note("what was found is not remembered on this host: %v", err)
		return
	}
	results := local.Results(p.repository)
	known, err := results.Machines()
	if err != nil {
		p.note("what was found is not remembered on this host: %v", err)
		return
	}
	for _, k := range known {
		if k.Latest.Run.IsZero() || len(f.machines) > 0 && !slices.Contains(f.machines, string(k.Machine)) {
			continue // without points there is nothing that could have been verified
		}
		v := state.Verified{Time: time.Now().UTC(), Data: f.data}
		points := map[ident.RunID]bool{}
		for _, d := range r.Damage {
			hit := false
			for _, point := range d.Points {
				if point.Machine == k.Machine {
					points[point.Point], hit = true, true
				}
			}
			if hit {
				v.DamagedObjects++
			}
		}
		v.DamagedPoints = len(points)
		if err := results.Update(k.Machine, func(r *state.Result) { r.Verified = v }); err != nil {
			p.note("%v", err)
		}
	}
	p.keepStoreCounters(results)
}

// reportUnopened names the object without which a repository cannot be opened.
func (p *program) reportUnopened(err error, f verifyFlags) error {
	var d *repo.Damage
	if !errors.As(err, &d) {
		return err
	}
	return p.reportVerified(&verify.Report{
		Damage:  []verify.Damage{{Key: d.Key, Offset: d.Offset, Length: d.Length, Problem: d.Err.Error(), Points: []verify.AffectedPoint{}}},
		Remarks: []string{"without " + d.Key + " no point can be read and nothing more can be verified"},
	}, f)
}

func (p *program) reportVerified(r *verify.Report, f verifyFlags) error {
	if p.json {
		if err := p.printJSON(verified{"verify", f.data, r}); err != nil {
			return err
		}
	} else {
		p.printVerified(r)
	}
	objects, points := affected(r)
	if objects == 0 {
		return nil
	}
	return fmt.Errorf("%w: objects: %d, points that lost something: %d", repo.ErrDamaged, objects, points)
}

// printVerified prints the damage, also with --quiet: it is what was asked for.
func (p *program) printVerified(r *verify.Report) {
	for _, d := range r.Damage {
		if d.Offset < 0 {
			fmt.Fprintf(p.stdout, "%s: %s\n", d.Key, d.Problem)
		} else {
			fmt.Fprintf(p.stdout, "%s at bytes %d+%d: %s\n", d.Key, d.Offset, d.Length, d.Problem)
		}
		for _, point := range d.Points {
			cannot := ""
			if point.Unreadable {
				cannot = ": cannot be opened"
			}
			fmt.Fprintf(p.stdout, "  machine %s, point %s of %s%s\n", point.Machine, point.Point, localTime(point.Time), cannot)
			for _, e := range point.Disks {
				fmt.Fprintf(p.stdout, "    disk %s: bytes %d+%d\n", e.Disk, e.Off, e.Len)
			}
		}
	}
	if r.RangesOmitted > 0 {
		fmt.Fprintf(p.stdout, "%d more ranges of disks are lost than are listed\n", r.RangesOmitted)
	}
	for _, remark := range r.Remarks {
		p.note("%s", remark)
	}
	objects, points := affected(r)
	p.say("%d objects of %d points looked at, %s read: damaged objects: %d, points that lost something: %d", r.Objects, r.Points, size(r.Bytes), objects, points)
}

// affected counts damaged objects, and the points that lost something.
func affected(r *verify.Report) (objects, points int) {
	type point struct {
		machine ident.MachineName
		run     ident.RunID
	}
	keys, lost := map[string]bool{}, map[point]bool{}
	for _, d := range r.Damage {
		keys[d.Key] = true
		for _, p := range d.Points {
			lost[point{p.Machine, p.Point}] = true
		}
	}
	return len(keys), len(lost)
}

// showVerify draws one bar on a terminal, until stop is called. What is to be read becomes known on the way.
func (p *program) showVerify(stats *verify.Stats) (stop func()) {
	if !p.bars() {
		return func() {}
	}
	var bar *mpb.Bar
	return p.draw(func(progress *mpb.Progress) {
		if bar == nil {
			bar = newBar(progress, "verify", stats.Total.Load())
		}
		bar.SetTotal(stats.Total.Load(), false)
		bar.SetCurrent(stats.Bytes.Load())
	})
}
