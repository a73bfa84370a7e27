package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/prune"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// pruneFlags say where nothing stays that nothing needs.
type pruneFlags struct {
	machines []string
	dryRun   bool
}

func (p *program) pruneCommand() *cobra.Command {
	var f pruneFlags
	c := &cobra.Command{
		Use:   "prune [--machine NAME]...",
		Short: "Delete from the store what no restore point needs",
		Long: `Delete data that no restore point and no running backup needs: of points that were forgotten at least seven days ago, and of runs
that failed or died. It may run at any time, next to backups and to other prunes. What it deletes it has looked for twice.

A machine of which something cannot be read is left alone, and the exit code is 21: qbackup verify says what is damaged. Once the
points that it concerns are forgotten, and seven days are over, the machine is pruned again.

The keys need the right to delete under data/, runs/ and probe/; agents do without.`,
		Example: `  qbackup prune --dry-run -v
  qbackup prune --machine web1`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.prune(c.Context(), f) },
	}
	flags := c.Flags()
	flags.StringArrayVar(&f.machines, "machine", nil, "one machine (repeatable); default: all")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "say what would be deleted; with -v object by object")
	return c
}

// pruned is one machine of prune --json.
type pruned struct {
	Machine       ident.MachineName `json:"machine"`
	Points        int               `json:"points"`
	Forgotten     int               `json:"forgotten"` // points that can still be brought back
	Held          []ident.RunID     `json:"held"`      // runs under way, or dead for less than three days
	Aborted       []ident.RunID     `json:"aborted"`   // runs that were dead for longer
	Objects       int               `json:"objects"`   // deleted, or that would be
	Bytes         int64             `json:"bytes"`
	Deleted       bool              `json:"deleted"`
	StoredBytes   int64             `json:"stored_bytes"` // of the machine's data that stays
	StoredObjects int               `json:"stored_objects"`
	Victims       []prune.Victim    `json:"victims,omitempty"` // with --dry-run -v
	Error         string            `json:"error,omitempty"`
}

func (p *program) prune(ctx context.Context, f pruneFlags) error {
	machines, err := machineNames(f.machines)
	if err != nil {
		return err
	}
	repository, err := p.openRepository(ctx)
	if err != nil {
		return err
	}
	for _, name := range machines {
		if _, known, err := repository.Machine(ctx, name); err != nil || !known {
			return cmp.Or(err, noPoints(ctx, repository, name))
		}
	}
	reports, err := prune.Run(ctx, repository, prune.Options{Machines: machines, DryRun: f.dryRun, By: "prune"})
	if !f.dryRun {
		p.rememberPrune(ctx, reports, err)
	}
	if err != nil && !errors.Is(err, prune.ErrSomeFailed) {
		return err
	}
	list := []pruned{}
	var failures []error
	for _, r := range reports {
		one := pruned{
			Machine: r.Machine, Points: r.Points, Forgotten: r.Forgotten, Held: append([]ident.RunID{}, r.Held...), Aborted: append([]ident.RunID{}, r.Aborted...),
			Objects: len(r.Victims), Bytes: r.Bytes(), Deleted: r.Deleted, StoredBytes: r.StoredBytes, StoredObjects: r.StoredObjects,
		}
		if f.dryRun && p.verbose > 0 {
			one.Victims = r.Victims
		}
		if r.Err != nil {
			one.Error = r.Err.Error()
			failures = append(failures, r.Err)
			if !p.json {
				p.failure("", untouched(r))
			}
		}
		list = append(list, one)
	}
	if err := p.reportPruned(list, f.dryRun); err != nil {
		return err
	}
	if len(failures) > 0 {
		return &saidBefore{fmt.Sprintf("%d of %d machines could not be pruned", len(failures), len(reports)), failures[0]}
	}
	return nil
}

// rememberPrune writes down how it ended, on a host that makes backups.
func (p *program) rememberPrune(ctx context.Context, reports []prune.MachineReport, err error) {
	local, stateErr := p.openState(false)
	if stateErr != nil {
		return // who only prunes has nothing to remember
	}
	results := local.Results(p.repository)
	if noteErr := fleet.RememberPrune(ctx, results, time.Now().UTC(), reports, err); noteErr != nil {
		p.note("%v", noteErr)
	}
	p.keepStoreCounters(results)
}

// untouched is the error of a machine, and whether anything of it was deleted before.
func untouched(r prune.MachineReport) error {
	if len(r.Victims) > 0 {
		return fmt.Errorf("%w; the next prune goes on", r.Err)
	}
	return fmt.Errorf("%w; nothing of this machine was deleted", r.Err)
}

func (p *program) reportPruned(list []pruned, dryRun bool) error {
	if p.json {
		return p.printJSON(list)
	}
	objects, bytes := 0, int64(0)
	for _, m := range list {
		objects, bytes = objects+m.Objects, bytes+m.Bytes
		for _, v := range m.Victims {
			fmt.Fprintf(p.stdout, "%s (%s): %s\n", v.Key, size(v.Bytes), v.Why)
		}
	}
	if p.verbose > 0 {
		w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "MACHINE\tPOINTS\tFORGOTTEN\tRUNS UNDER WAY\tDELETED\tSTAYS\t")
		for _, m := range list {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t\n", m.Machine, m.Points, m.Forgotten, len(m.Held), size(m.Bytes), size(m.StoredBytes))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	verb := "deleted"
	if dryRun {
		verb = "that would be deleted"
	}
	p.say("machines: %d, objects %s: %d (%s)", len(list), verb, objects, size(bytes))
	return nil
}

// backUntil is when a forgotten point can be brought back at the latest.
func backUntil(forgotten time.Time) time.Time {
	return forgotten.Add(format.Grace - format.GraceMargin)
}
