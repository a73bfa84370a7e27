package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

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

Started by systemd it says when it is ready, what it is doing, and, to the watchdog, that backups get on. When another version was installed,
it begins nothing more, and ends as soon as nothing runs: systemd starts the new one.`,
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
	if errors.Is(err, state.ErrBusy) {
		return fmt.Errorf("another agent is at work with this state directory: %w", err)
	}
	if err != nil {
		return err
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
	b := &backend{program: p, local: local, log: p.logger(), running: map[string]running{}}
	b.configure()
	defer b.endMetrics()
	service.Run(ctx, b, service.Options{
		Parallel: b.parallel, Boot: state.BootTime(), Reload: reload, StopWithin: within,
		Stall: p.retryFor + stallSlack, Watchdog: watchdog,
		Outdated: replaced,
		Notify: func(state string) {
			if _, err := daemon.SdNotify(false, state); err != nil {
				p.warn("tell systemd: %v", err)
			}
		},
		Say: p.warn, Note: p.note,
	})
	p.keepStoreCounters(b.fleet.Results())
	return nil
}

// replaced tells whether the program's file was replaced, as by a package's upgrade, and somebody is there to start the new one.
func replaced() bool {
	path, err := os.Readlink("/proc/self/exe")
	return err == nil && strings.HasSuffix(path, " (deleted)") && os.Getenv("INVOCATION_ID") != ""
}
