package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/state"
)

const (
	// lookAtOnce is how many machines are looked at at once, and lookTime how long one may take.
	lookAtOnce = 8
	lookTime   = 10 * time.Second
)

// statusFlags are what status can be told.
type statusFlags struct {
	nagios, quick bool
}

func (p *program) statusCommand() *cobra.Command {
	var f statusFlags
	c := &cobra.Command{
		Use:   "status [MACHINE...]",
		Short: "Say for every machine how old its newest restore point is, and what is wrong",
		Long: `Say for every machine of the configuration, and every other one that this host has backed up, how old its newest complete
restore point is, what the next backup would read, and what is wrong. All is taken from this host's memory and, for the next backup, from
the images' bitmaps or the running QEMU: the repository is not asked.

  ok        the newest backup has all disks, and is young enough
  new       there was no backup yet
  partial   the newest point lacks disks
  failed    the last backup failed; the objective, if there is one, still holds
  late      the newest point with all disks is older than the objective

With --nagios one line is printed, and the exit code is 0, 1 (new, partial, failed), 2 (late) or 3 (it cannot be known).`,
		Example: `  qbackup status
  qbackup status web1 --json
  qbackup status --nagios`,
		Annotations: map[string]string{unconfigured: "a plugin says itself that its configuration is wrong"},
		RunE: func(c *cobra.Command, args []string) error {
			err := p.applyConfig()
			if err != nil && f.nagios {
				return p.nagios(nil, nil, err)
			}
			if err != nil {
				return err
			}
			return p.status(c.Context(), f, args)
		},
	}
	c.Flags().BoolVar(&f.nagios, "nagios", false, "one line and an exit code as monitoring plugins have them")
	c.Flags().BoolVar(&f.quick, "quick", false, "do not look at images and running machines")
	return c
}

// machineStatus is one machine of status --json.
type machineStatus struct {
	Machine          ident.MachineName    `json:"machine"`
	State            fleet.Health         `json:"state"`
	Problem          string               `json:"problem,omitempty"`
	AgeSeconds       *float64             `json:"age_seconds"` // of the newest point with all disks; null: none
	ObjectiveSeconds float64              `json:"objective_seconds,omitempty"`
	Configured       bool                 `json:"configured"`
	Next             []agent.DiskForecast `json:"next,omitempty"` // what the next backup would read
	NextProblem      string               `json:"next_problem,omitempty"`
	Result           state.Result         `json:"result"`
}

func (p *program) status(ctx context.Context, f statusFlags, names []string) error {
	list, problems, err := p.statuses(ctx, f, names)
	if f.nagios {
		return p.nagios(list, problems, err)
	}
	if err != nil {
		return err
	}
	if p.json {
		if err := p.printJSON(list); err != nil {
			return err
		}
	} else if err := p.printStatus(list, p.lastPrune()); err != nil {
		return err
	}
	return p.problems(problems)
}

// lastPrune is how this host's last prune ended, as far as that is remembered.
func (p *program) lastPrune() (last state.Prune) {
	if local, err := p.openState(true); err == nil {
		last = local.Results(p.repository).Overall().Prune
	}
	return last
}

// statuses finds out about machines: those of the configuration in its order, and then others that were backed up.
func (p *program) statuses(ctx context.Context, f statusFlags, names []string) ([]machineStatus, []*fleet.Problem, error) {
	if p.repository == "" {
		return nil, nil, usagef("no repository is named; use --repo, QBACKUP_REPOSITORY or a configuration")
	}
	local, err := p.openState(true)
	if err != nil {
		return nil, nil, err
	}
	results := local.Results(p.repository)
	known, err := results.Machines()
	if err != nil {
		return nil, nil, err
	}
	machines, problems := p.machines(ctx)
	now := time.Now()
	list := []machineStatus{}
	for _, m := range machines {
		list = append(list, statusOf(results.Machine(m.Name), m.Objective, now, true))
	}
	for _, r := range known {
		if !slices.ContainsFunc(machines, func(m fleet.Machine) bool { return m.Name == r.Machine }) {
			list = append(list, statusOf(r, 0, now, false))
		}
	}
	if len(names) > 0 {
		problems = nil
		for _, name := range names {
			if !slices.ContainsFunc(list, func(s machineStatus) bool { return string(s.Machine) == name }) {
				return nil, nil, usagef("nothing is known of a machine %s", name)
			}
		}
		list = slices.DeleteFunc(list, func(s machineStatus) bool { return !slices.Contains(names, string(s.Machine)) })
	}
	if !f.quick {
		p.forecasts(ctx, local, list, machines)
	}
	return list, problems, nil
}

func statusOf(r state.Result, objective time.Duration, now time.Time, configured bool) machineStatus {
	s := machineStatus{Machine: r.Machine, Result: r, Configured: configured, ObjectiveSeconds: objective.Seconds()}
	s.State = fleet.HealthOf(r, objective, now)
	s.Problem = s.State.Say(r, objective, now)
	if !r.Success.Time.IsZero() {
		age := now.Sub(r.Success.Time).Seconds()
		s.AgeSeconds = &age
	}
	return s
}

// forecasts looks at the machines.
func (p *program) forecasts(ctx context.Context, local *state.State, list []machineStatus, machines []fleet.Machine) {
	id := p.repositoryID(local)
	var group errgroup.Group
	group.SetLimit(lookAtOnce)
	for i := range list {
		at := slices.IndexFunc(machines, func(m fleet.Machine) bool { return m.Name == list[i].Machine })
		if at < 0 {
			continue
		}
		group.Go(func() error {
			journal, _ := local.Repository(id).Machine(list[i].Machine).Journal()
			var err error
			if list[i].Next, err = p.forecast(ctx, machines[at], journal); err != nil {
				list[i].NextProblem = err.Error()
			}
			return nil
		})
	}
	_ = group.Wait() // no function fails
}

func (p *program) forecast(ctx context.Context, m fleet.Machine, journal state.Journal) ([]agent.DiskForecast, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	spec := m.Spec
	spec.DryRun = true
	t, err := p.host().Choose(ctx, spec)
	if err != nil {
		return nil, err
	}
	family := journal.MachineID.Family()
	evidence, err := t.Open(family).Inspect(ctx)
	if err = errors.Join(err, t.Close()); err != nil {
		return nil, err
	}
	list := agent.Forecast(evidence, family)
	if journal.MachineID.IsZero() {
		for i := range list {
			list[i].Reason = agent.ReasonFirst
		}
	}
	return list, nil
}

func (p *program) printStatus(list []machineStatus, prune state.Prune) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MACHINE\tSTATE\tNEWEST POINT\tAGE\tOBJECTIVE\tNEXT READS\tVERIFIED\t")
	for _, s := range list {
		point, age, objective, verified := "none", "", "", "never"
		if r := s.Result; !r.Success.Time.IsZero() {
			point, age = localTime(r.Success.Time), ageOf(time.Duration(*s.AgeSeconds*float64(time.Second)))
		}
		if s.ObjectiveSeconds > 0 {
			objective = ageOf(time.Duration(s.ObjectiveSeconds) * time.Second)
		}
		if v := s.Result.Verified; !v.Time.IsZero() {
			if verified = localTime(v.Time); v.DamagedObjects > 0 {
				verified += " DAMAGED"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", s.Machine, s.State, point, age, objective, nextReads(s), verified)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range list {
		if s.Problem != "" {
			fmt.Fprintf(p.stdout, "%s: %s\n", s.Machine, s.Problem)
		}
		if s.NextProblem != "" && !strings.Contains(s.Problem, s.NextProblem) {
			fmt.Fprintf(p.stdout, "%s: it cannot be looked at: %s\n", s.Machine, s.NextProblem)
		}
		if e := s.Result.Kept.Error; e != "" {
			fmt.Fprintf(p.stdout, "%s: %s\n", s.Machine, e)
		}
	}
	if prune.Error != "" {
		fmt.Fprintf(p.stdout, "prune of %s: %s\n", localTime(prune.End), prune.Error)
	}
	return nil
}

// nextReads sums up what the next backup would read.
func nextReads(s machineStatus) string {
	if len(s.Next) == 0 {
		return ""
	}
	var bytes int64
	var why string
	for _, d := range s.Next {
		bytes += d.Bytes
		switch {
		case d.Error != "":
			why = " (a disk is missing)"
		case d.Reason != "" && why == "":
			why = fmt.Sprintf(" (%s)", d.Reason)
		}
	}
	return size(bytes) + why
}

// ageOf writes a length of time in the two units that matter.
func ageOf(d time.Duration) string {
	d = d.Round(time.Minute)
	switch days := d / (24 * time.Hour); {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
}
