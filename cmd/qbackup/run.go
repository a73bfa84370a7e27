package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/schedule"
	"github.com/qbackup/qbackup/internal/state"
)

// runLock is the file by which a run of all machines keeps others out, in the state directory.
const runLock = "run.lock"

func (p *program) runCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "run [MACHINE...]",
		Short: "Back up the machines of the configuration that are due, or those named",
		Long: `Back up every machine of the configuration that is due, several at once; a machine without a schedule is due at each
run. Machines that are named are backed up whether they are due or not.

This is the command for cron and for timers: without a terminal it prints nothing when all went well. Otherwise it prints on standard
error what went wrong, machine by machine, and one line that sums it up. With -v, each machine's outcome is printed, too.

A run of all machines that meets another one at work ends with exit code 11 and does nothing.`,
		Example: `  qbackup run
  qbackup run web1 db
  qbackup --config /etc/qbackup/other.yaml run -v`,
		RunE: func(c *cobra.Command, args []string) error { return p.run(c.Context(), args, dryRun) },
	}
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "say which machines are due, and back up none")
	return c
}

func (p *program) run(ctx context.Context, names []string, dryRun bool) error {
	if len(p.configured().Machines) == 0 {
		path, _ := p.configPath()
		return usagef("no machines are configured; describe them in %s, see qbackup config sample", path)
	}
	if p.repository == "" {
		return usagef("no repository is configured; say repository in the configuration, or use --repo")
	}
	if !dryRun {
		if err := p.thaw(ctx, false); err != nil {
			p.warn("%v", err)
		}
	}
	local, err := p.openState(dryRun)
	if err != nil {
		return err
	}
	all, problems := p.machines(ctx)
	machines, err := chosen(all, names)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		problems = nil // they are about others
	}
	f := p.newFleet(local)
	scheduled := len(names) == 0
	if scheduled && !dryRun {
		// Before anybody is found to be due: the other run may be just about to serve him.
		unlock, err := state.LockFile(filepath.Join(local.Dir(), runLock), time.Now())
		if errors.Is(err, state.ErrBusy) {
			return fmt.Errorf("another run of all machines is at work: %w", err)
		}
		if err != nil {
			return err
		}
		defer unlock()
	}
	if scheduled {
		machines = p.due(f.Results(), machines, dryRun)
	}
	if dryRun {
		return p.reportDue(machines, problems)
	}
	defer p.writeMetrics(local, all, len(problems))
	err = p.runMachines(ctx, f, machines, problems, scheduled)
	if scheduled {
		err = errors.Join(err, p.pruneDue(ctx, f, all))
	}
	return err
}

// reportDue says which machines are due.
func (p *program) reportDue(machines []fleet.Machine, problems []*fleet.Problem) error {
	names := []ident.MachineName{}
	for _, m := range machines {
		names = append(names, m.Name)
		p.say("%s", m.Name)
	}
	if p.json {
		if err := p.printJSON(names); err != nil {
			return err
		}
	}
	return p.problems(problems)
}

// chosen are the machines with these names; without names, all.
func chosen(machines []fleet.Machine, names []string) ([]fleet.Machine, error) {
	if len(names) == 0 {
		return machines, nil
	}
	var list []fleet.Machine
	for _, name := range names {
		i := slices.IndexFunc(machines, func(m fleet.Machine) bool { return string(m.Name) == name })
		if i < 0 {
			return nil, usagef("no machine of the configuration is called %s", name)
		}
		list = append(list, machines[i])
	}
	return list, nil
}

// due are the machines whose time has come.
func (p *program) due(results *state.Results, machines []fleet.Machine, dryRun bool) (list []fleet.Machine) {
	now, boot := time.Now(), state.BootTime()
	for _, m := range machines {
		if m.Schedule == "" {
			list = append(list, m)
			continue
		}
		s, err := schedule.Parse(m.Schedule)
		if err != nil {
			continue // the configuration was checked
		}
		r := results.Machine(m.Name)
		d := s.Due(schedule.Past{Last: r.Scheduled, Unfinished: r.Unfinished(), Boot: boot}, now, schedule.Delay(string(m.Name), m.Jitter))
		if !d.Last.Equal(r.Scheduled) && !dryRun {
			p.begun(results, m, d.Last) // the clock was set back by a lot
		}
		if d.Due {
			list = append(list, m)
		}
	}
	return list
}

// begun writes down when a machine was begun because it was due.
func (p *program) begun(results *state.Results, m fleet.Machine, at time.Time) {
	if err := results.Update(m.Name, func(r *state.Result) { r.Scheduled = at }); err != nil {
		p.warn("%v", err)
	}
}

// newFleet makes the fleet that run and agent work with.
func (p *program) newFleet(local *state.State) *fleet.Fleet {
	return fleet.New(fleet.Options{
		Host: p.host(), State: local, Place: p.repository,
		Open:  func(ctx context.Context) (*repo.Repository, error) { return p.openRepository(ctx) },
		Agent: agent.Options{Tool: "qbackup " + programVersion(), MemoryBytes: int64(p.configured().Limits.Memory)},
		Class: func(err error) string { return exitClass(err) },
		Note:  func(text string) { p.note("%s", text) },
	})
}

// runMachines backs machines up and says how that went.
func (p *program) runMachines(ctx context.Context, f *fleet.Fleet, machines []fleet.Machine, problems []*fleet.Problem, scheduled bool) error {
	before := map[ident.MachineName]time.Time{}
	for _, m := range machines {
		before[m.Name] = f.Results().Machine(m.Name).Scheduled
	}
	began := func(m fleet.Machine) {
		if scheduled && m.Schedule != "" {
			p.begun(f.Results(), m, time.Now())
		}
	}
	var print sync.Mutex
	ended := func(e agent.Ending) {
		if scheduled && errors.Is(e.Err, repo.ErrNoRepository) {
			// It is due as soon as there is one.
			p.begun(f.Results(), fleet.Machine{Name: e.Machine}, before[e.Machine])
		}
		print.Lock()
		defer print.Unlock()
		p.reportEnding(e)
	}
	endings := f.Run(ctx, machines, int(p.configured().Limits.Parallel), began, ended)
	p.keepStoreCounters(f.Results())
	var failures []error
	for _, problem := range problems {
		p.failure("", problem)
		failures = append(failures, problem)
	}
	points := 0
	for _, e := range endings {
		if e.Machine == "" {
			continue // interrupted before its turn
		}
		if !e.Summary.Point.IsZero() {
			points++
		}
		if e.Err != nil {
			failures = append(failures, e.Err)
		}
	}
	return p.sumUp(ctx, len(machines)+len(problems), points, failures)
}

// runSummary is the last line of run --json.
type runSummary struct {
	MessageType string `json:"message_type"` // "run"
	Machines    int    `json:"machines"`
	Failed      int    `json:"failed"`
	Points      int    `json:"points"`
}

func (p *program) sumUp(ctx context.Context, total, points int, failures []error) error {
	failed := len(failures)
	if p.json {
		if err := p.printJSON(runSummary{"run", total, failed, points}); err != nil {
			return err
		}
	} else if failed == 0 && (p.verbose > 0 || isTerminal(p.stdout)) {
		p.say("machines: %d, points made: %d", total, points)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed == 0 {
		return nil
	}
	class := errSomeMachines
	if points == 0 && !slices.ContainsFunc(failures, func(err error) bool { return rowOf(err).code != rowOf(failures[0]).code }) {
		class = failures[0] // all failed for one reason, and the code says which
	}
	return &saidBefore{fmt.Sprintf("%d of %d machines failed, points made: %d", failed, total, points), class}
}

// saidBefore is an error whose words were printed; what is left to say is the sum.
type saidBefore struct {
	sum   string
	class error
}

func (e *saidBefore) Error() string { return e.sum }

func (e *saidBefore) Unwrap() error { return e.class }

// errSomeMachines: what went wrong was said machine by machine.
var errSomeMachines = errors.New("not all machines were backed up")

// problems reports what is wrong with entries of which no machine was made.
func (p *program) problems(all []*fleet.Problem) error {
	for _, problem := range all {
		p.failure("", problem)
	}
	if len(all) > 0 {
		return &saidBefore{fmt.Sprintf("entries of the configuration without a machine: %d", len(all)), errSomeMachines}
	}
	return nil
}

// reportAlarms says what somebody should look at although a backup went on.
func (p *program) reportAlarms(e agent.Ending) {
	for _, a := range e.Summary.Alarms {
		p.warn("machine %s: %s", e.Machine, a.Text)
	}
	for _, d := range e.Summary.NotReset {
		p.note("machine %s: disk %s: the bitmap was not reset, the next run does it: %s", e.Machine, d.Disk, d.Error)
	}
}

// reportEnding says how one machine's backup ended.
func (p *program) reportEnding(e agent.Ending) {
	p.reportAlarms(e)
	switch {
	case p.json:
		_ = p.printJSON(newSummaryLine(e.Summary))
	case !e.Summary.Point.IsZero() && (p.verbose > 0 || isTerminal(p.stdout)):
		p.say("%s: point %s in %.1f s: %s", e.Machine, e.Summary.Point, e.Summary.DurationSeconds, totals(e.Summary))
	}
	if e.Err != nil {
		p.failure(string(e.Machine), e.Err)
	}
}

func totals(s agent.Summary) string {
	var dirty, read, stored int64
	modes := map[string]bool{}
	var words []string
	for _, d := range s.Disks {
		dirty, read, stored = dirty+d.DirtyBytes, read+d.ReadBytes, stored+d.StoredBytes
		if !modes[d.Mode] {
			modes[d.Mode] = true
			words = append(words, d.Mode)
		}
	}
	return fmt.Sprintf("%s, %s dirty, %s read, %s stored", strings.Join(words, " and "), size(dirty), size(read), size(stored))
}

// failure prints one machine's error.
func (p *program) failure(machine string, err error) {
	if p.json {
		_ = writeJSON(p.stderr, map[string]any{"message_type": "error", "machine": machine, "class": exitClass(err), "message": err.Error()})
		return
	}
	if machine != "" {
		machine = "machine " + machine + ": "
	}
	fmt.Fprintf(p.stderr, "%sqbackup: %s%v\n", p.priority(priorityError), machine, err)
}
