package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/configs"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/prune"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/retention"
)

// forgetFlags say which points go.
type forgetFlags struct {
	machines []string
	policy   retention.Policy
	within   string
	dryRun   bool
	prune    bool
}

func (p *program) forgetCommand() *cobra.Command {
	var f forgetFlags
	c := &cobra.Command{
		Use:   "forget [--machine NAME]... [--keep-RULE N]... | forget --machine NAME POINT...",
		Short: "Forget restore points that a policy does not keep, or those named",
		Long: `Forget restore points. A point that is forgotten is listed no more, and no backup builds on it. For six days it can be
brought back (qbackup unforget); after seven its data may be deleted (qbackup prune).

A point stays when one rule keeps it. A period's rule keeps one point for each of so many hours, days, weeks, ... that have any: the
newest that has all disks, where there is one. Without rules the policy is that of the configuration (keep); a machine without a
policy loses nothing. Whatever the policy says, these stay: pinned points, points of the last 24 hours before the machine's newest,
points whose record cannot be read, and of each disk the newest point, and the newest in which no verification found damage.

Points that are named are named by their ids, or the beginning of one, or latest.

With --dry-run nothing is written, and each point is listed with why it stays or goes.`,
		Example: `  qbackup forget --machine web1 --keep-daily 7 --keep-weekly 4 --dry-run
  qbackup forget --machine web1 06h06an4b5qr1eq94nhtm58sbc
  qbackup forget --prune`,
		RunE: func(c *cobra.Command, points []string) error { return p.forget(c.Context(), f, points) },
	}
	flags := c.Flags()
	flags.StringArrayVar(&f.machines, "machine", nil, "one machine (repeatable); default: all")
	for _, r := range []struct {
		n           *int
		name, usage string
	}{
		{&f.policy.Last, "last", "keep the newest `N` points"},
		{&f.policy.Hourly, "hourly", "keep one point for each of the newest `N` hours that have any"},
		{&f.policy.Daily, "daily", "keep one point for each of `N` days"},
		{&f.policy.Weekly, "weekly", "keep one point for each of `N` weeks"},
		{&f.policy.Monthly, "monthly", "keep one point for each of `N` months"},
		{&f.policy.Yearly, "yearly", "keep one point for each of `N` years"},
	} {
		flags.IntVar(r.n, "keep-"+r.name, 0, r.usage)
	}
	flags.StringVar(&f.within, "keep-within", "", "keep all points that are at most this much older than the newest, as 48h or 7d")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "say what stays and what goes, and why; change nothing")
	flags.BoolVar(&f.prune, "prune", false, "then delete what no point needs, as qbackup prune does")
	return c
}

func (p *program) forget(ctx context.Context, f forgetFlags, points []string) error {
	if f.within != "" {
		d, err := configs.ParseDuration(f.within)
		if err != nil {
			return usagef("--keep-within: %v", err)
		}
		f.policy.Within = d
	}
	if err := f.policy.Check(); err != nil {
		return usagef("%v", err)
	}
	if len(points) > 0 {
		if len(f.machines) != 1 || !f.policy.Empty() {
			return usagef("points are named with one --machine, and without rules")
		}
		return p.forgetPoints(ctx, f, points)
	}
	repository, err := p.openRepository(ctx)
	if err != nil {
		return err
	}
	policies, err := p.policies(ctx, repository, f)
	if err != nil {
		return err
	}
	list := []decided{}
	forgotten := 0
	for _, m := range policies {
		decisions, err := prune.Decide(ctx, repository, m.machine, m.policy, time.Local)
		if err == nil && len(decisions) == 0 && len(f.machines) > 0 {
			err = noPoints(ctx, repository, m.machine)
		}
		if err != nil {
			return err
		}
		for _, d := range decisions {
			list = append(list, decided{m.machine, d.Run, d.Time, d.Keep, append([]string{}, d.Reasons...)})
		}
		if !f.dryRun {
			n, err := prune.Forget(ctx, repository, m.machine, decisions, "forget", hostname())
			forgotten += n
			if err != nil {
				return err
			}
		}
	}
	if err := p.reportForgotten(list, f.dryRun); err != nil || f.dryRun || !f.prune {
		return err
	}
	return p.prune(ctx, pruneFlags{machines: f.machines})
}

func hostname() string {
	name, _ := os.Hostname() // without one a document says less
	return name
}

// machinePolicy is what holds for a machine.
type machinePolicy struct {
	machine ident.MachineName
	policy  retention.Policy
}

// policies are those of the flags for the machines chosen, or those of the configuration.
func (p *program) policies(ctx context.Context, repository *repo.Repository, f forgetFlags) ([]machinePolicy, error) {
	var list []machinePolicy
	if !f.policy.Empty() {
		names, err := machineNames(f.machines)
		if err == nil && names == nil {
			names, err = repository.Machines(ctx)
		}
		for _, name := range names {
			list = append(list, machinePolicy{name, f.policy})
		}
		return list, err
	}
	machines, problems := p.machines(ctx)
	for _, m := range machines {
		if !m.Keep.Empty() && (len(f.machines) == 0 || slices.Contains(f.machines, string(m.Name))) {
			list = append(list, machinePolicy{m.Name, m.Keep})
		}
	}
	if err := p.problems(problems); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, usagef("nothing says what to keep: give rules such as --keep-daily 7, or say keep in the configuration")
	}
	return list, nil
}

func machineNames(words []string) (names []ident.MachineName, err error) {
	for _, word := range words {
		name, err := ident.ParseMachineName(word)
		if err != nil {
			return nil, usagef("%v", err)
		}
		names = append(names, name)
	}
	return names, nil
}

// decided is one point of forget --json.
type decided struct {
	Machine ident.MachineName `json:"machine"`
	Point   ident.RunID       `json:"point"`
	Time    time.Time         `json:"time"`
	Keep    bool              `json:"keep"`
	Reasons []string          `json:"reasons"` // why it stays
}

func (p *program) reportForgotten(list []decided, dryRun bool) error {
	if p.json {
		return p.printJSON(list)
	}
	going := 0
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MACHINE\tPOINT\tTIME\t\tWHY\t")
	for _, d := range list {
		word, why := "stays", strings.Join(d.Reasons, ", ")
		if !d.Keep {
			going++
			word, why = "goes", "no rule keeps it"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", d.Machine, d.Point, localTime(d.Time), word, why)
	}
	if dryRun || p.verbose > 0 {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	verb := "forgotten"
	if dryRun {
		verb = "would be forgotten"
	}
	p.say("points: %d, of which %d %s", len(list), going, verb)
	return nil
}

// forgetPoints forgets the points that are named.
func (p *program) forgetPoints(ctx context.Context, f forgetFlags, words []string) error {
	err := p.markPoints(ctx, f.machines[0], words, marking{
		verb: "forget", done: "forgotten; qbackup unforget brings it back within six days", same: "was forgotten before", exact: true, dryRun: f.dryRun,
		mark: func(r *repo.Repository) markFunc {
			return func(ctx context.Context, spec repo.MarkSpec) (bool, error) { return prune.ForgetOne(ctx, r, spec) }
		},
	})
	if err != nil || f.dryRun || !f.prune {
		return err
	}
	return p.prune(ctx, pruneFlags{machines: f.machines})
}
