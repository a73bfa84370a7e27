package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/schedule"
	"github.com/qbackup/qbackup/internal/service"
	"github.com/qbackup/qbackup/internal/state"
)

const (
	// expandAfter is how often patterns of the configuration are looked up anew.
	expandAfter = 5 * time.Minute
	// stopWithin is how long a stop waits for backups before it cuts them short.
	stopWithin = 5 * time.Minute
	// stallSlack is how much longer than the retries of the store a backup may stand still.
	stallSlack = 10 * time.Minute
)

func (p *program) agentCommand() *cobra.Command {
	within := stopWithin
	c := &cobra.Command{
		Use:   "agent",
		Short: "Back up the machines of the configuration at their times, as a service",
		Long: `Back up the machines of the configuration at the times of their schedules, until the service is stopped. A machine without a
schedule is left to qbackup run.

SIGHUP reads the configuration again, without dropping a backup that runs; one that is wrong is refused, and the old one holds. SIGTERM begins
nothing more and waits --stop-within for backups that run; then they are cut short, and nothing is lost. What is due is remembered over restarts.

Started by systemd it says when it is ready, what it is doing, and, to the watchdog, that backups get on.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.agent(c.Context(), within) },
	}
	c.Flags().DurationVar(&within, "stop-within", stopWithin, "how long a stop waits for backups that run")
	return c
}

func (p *program) agent(ctx context.Context, within time.Duration) error {
	if p.repository == "" {
		return usagef("no repository is configured; say repository in the configuration, or use --repo")
	}
	local, err := p.openState(false)
	if err != nil {
		return err
	}
	// One service for a state directory: two would run each machine at the same time.
	unlock, err := state.LockFile(local.Dir()+"/agent.lock", time.Now())
	if err != nil {
		return fmt.Errorf("another agent is at work with this state directory: %w", err)
	}
	defer unlock()
	if err := p.thaw(ctx, false); err != nil {
		p.warn("%v", err)
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	reload := make(chan struct{})
	go func() {
		for {
			select {
			case <-hangup:
			case <-ctx.Done():
				return
			}
			select {
			case reload <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		p.warn("the watchdog is not used: %v", err)
	}
	b := &backend{program: p, local: local, running: map[string]*agent.Stats{}}
	b.configure()
	service.Run(ctx, b, service.Options{
		Parallel: b.parallel, Boot: state.BootTime(), Reload: reload, StopWithin: within,
		Stall: p.retryFor + stallSlack, Watchdog: watchdog,
		Notify: func(state string) {
			if _, err := daemon.SdNotify(false, state); err != nil {
				p.warn("tell systemd: %v", err)
			}
		},
		Say: func(format string, args ...any) { p.warn(format, args...) },
	})
	p.keepStoreCounters(b.fleet.Results())
	return nil
}

// backend is a service.Backend over the fleet of the configuration.
type backend struct {
	*program
	local *state.State

	mu        sync.Mutex
	fleet     *fleet.Fleet
	scheduled []service.Machine
	machines  []fleet.Machine
	expanded  time.Time // by the monotonic clock
	problems  []string  // that were told
	running   map[string]*agent.Stats
}

// configure makes a fleet of the present configuration.
func (b *backend) configure() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fleet, b.expanded = b.newFleet(b.local), time.Time{}
}

func (b *backend) parallel() int { return int(b.configured().Limits.Parallel) }

// Machines implements service.Backend.
func (b *backend) Machines(ctx context.Context) []service.Machine {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.expanded.IsZero() && time.Since(b.expanded) < expandAfter {
		return b.scheduled
	}
	machines, problems := b.program.machines(ctx)
	b.expanded, b.machines, b.scheduled = time.Now(), machines, nil
	for _, m := range machines {
		if m.Schedule == "" {
			continue
		}
		s, err := schedule.Parse(m.Schedule)
		if err != nil {
			continue // the configuration was checked
		}
		b.scheduled = append(b.scheduled, service.Machine{Name: string(m.Name), Schedule: s, Jitter: m.Jitter})
	}
	if len(b.scheduled) == 0 {
		problems = append(problems, &fleet.Problem{Entry: "machines", Err: errors.New("none has a schedule; say schedule in defaults, or use qbackup run")})
	}
	b.tell(problems)
	return b.scheduled
}

// tell says what is wrong with entries, once until that changes.
func (b *backend) tell(problems []*fleet.Problem) {
	var texts []string
	for _, problem := range problems {
		texts = append(texts, problem.Error())
		if !slices.Contains(b.problems, problem.Error()) {
			b.failure("", problem)
		}
	}
	b.problems = texts
}

func (b *backend) now() (*fleet.Fleet, []fleet.Machine) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fleet, b.machines
}

// LastStart implements service.Backend.
func (b *backend) LastStart(name string) time.Time {
	f, _ := b.now()
	return f.Results().Machine(ident.MachineName(name)).Scheduled
}

// Start implements service.Backend.
func (b *backend) Start(name string, at time.Time) error {
	f, _ := b.now()
	return f.Results().Update(ident.MachineName(name), func(r *state.Result) { r.Scheduled = at })
}

// Run implements service.Backend.
func (b *backend) Run(ctx context.Context, name string) {
	f, machines := b.now()
	i := slices.IndexFunc(machines, func(m fleet.Machine) bool { return string(m.Name) == name })
	if i < 0 {
		return // it left the configuration in this moment
	}
	stats := new(agent.Stats)
	b.mu.Lock()
	b.running[name] = stats
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.running, name)
		b.mu.Unlock()
	}()
	e := f.Backup(ctx, machines[i], stats)
	b.reportEnding(e)
	b.keepStoreCounters(f.Results())
}

// Progress implements service.Backend.
func (b *backend) Progress(name string) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if stats := b.running[name]; stats != nil {
		return stats.Progress()
	}
	return 0
}

// Reload implements service.Backend. Backups that run go on with what they began with.
func (b *backend) Reload(context.Context) error {
	config, err := b.loadConfig()
	if err != nil {
		return err
	}
	if config.Repository != b.configured().Repository && b.repository == b.configured().Repository {
		return errors.New("the repository is another one; restart the service for that")
	}
	b.config.Store(config)
	b.configure()
	return nil
}
