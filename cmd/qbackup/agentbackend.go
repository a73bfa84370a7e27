package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/configs"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/schedule"
	"github.com/qbackup/qbackup/internal/service"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/metrics"
)

// backend is a service.Backend over the fleet of the configuration.
type backend struct {
	*program
	local *state.State
	log   *slog.Logger

	mu        sync.Mutex
	fleet     *fleet.Fleet
	scheduled []service.Machine
	machines  []fleet.Machine
	expanded  time.Time // by the monotonic clock
	problems  []string  // that were told
	running   map[string]running

	unassigned []string
	ahead      ahead
	server     *metrics.Server // nil: no metrics are served
	served     configs.Metrics // how they are, or were to be
}

// running is a backup that runs.
type running struct {
	since time.Time
	stats *agent.Stats
}

// configure makes a fleet of the present configuration, and serves its metrics.
func (b *backend) configure() {
	b.mu.Lock()
	b.fleet, b.expanded = b.newFleet(b.local), time.Time{}
	b.mu.Unlock()
	if c := b.configured().Metrics; c != b.served {
		b.endMetrics()
		b.served = c
		b.serveMetrics(c)
	}
}

// serveMetrics serves the metrics. That it cannot is no reason not to back up.
func (b *backend) serveMetrics(c configs.Metrics) {
	l, wanted, err := listen(c)
	if err != nil {
		b.warn("metrics are not served: %v", err)
		return
	}
	if !wanted {
		return
	}
	s := b.metricsSource(b.local)
	s.Machines = func() []metrics.Machine {
		_, machines := b.now()
		return configuredMachines(machines)
	}
	s.Problems = func() int { return len(b.problemsTold()) }
	s.Unassigned = func() []string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.unassigned
	}
	s.Next = func() []metrics.Next {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.ahead.found
	}
	s.Running = func() []metrics.Running {
		b.mu.Lock()
		defer b.mu.Unlock()
		var list []metrics.Running
		for name, r := range b.running {
			list = append(list, metrics.Running{Machine: ident.MachineName(name), Since: r.since, Stats: r.stats})
		}
		return list
	}
	if b.server, err = metrics.Serve(l, metrics.New(s), func(err error) { b.warn("%v", err) }); err != nil {
		b.warn("%v", err)
	}
}

func (b *backend) endMetrics() {
	if b.server == nil {
		return
	}
	if err := b.server.Close(); err != nil {
		b.note("end the metrics' server: %v", err)
	}
	b.server = nil
}

func (b *backend) parallel() int { return int(b.configured().Limits.Parallel) }

// Machines implements service.Backend. Patterns are looked up every now and then, which may take a while; others see the
// machines of before meanwhile.
func (b *backend) Machines(ctx context.Context) []service.Machine {
	b.mu.Lock()
	fresh, scheduled := !b.expanded.IsZero() && time.Since(b.expanded) < expandAfter, b.scheduled
	b.mu.Unlock()
	if fresh {
		return scheduled
	}
	machines, problems := b.program.machines(ctx)
	unassigned := fleet.Unassigned(ctx, entries(b.configured()))
	scheduled = nil
	for _, m := range machines {
		if m.Schedule == "" {
			continue
		}
		s, err := schedule.Parse(m.Schedule)
		if err != nil {
			continue // the configuration was checked
		}
		scheduled = append(scheduled, service.Machine{Name: string(m.Name), Schedule: s, Jitter: m.Jitter})
	}
	if len(scheduled) == 0 {
		problems = append(problems, &fleet.Problem{Entry: "machines", Err: errors.New("none has a schedule; say schedule in defaults, or use qbackup run")})
	} else if s := b.pruneSchedule(); s != nil {
		scheduled = append(scheduled, service.Machine{Name: pruneName, Schedule: s, Jitter: pruneJitter})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expanded, b.machines, b.scheduled, b.unassigned = time.Now(), machines, scheduled, unassigned
	b.tell(problems)
	if !b.ahead.busy && b.server != nil {
		b.ahead.busy = true
		go b.lookAhead(ctx, machines)
	}
	return scheduled
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
func (b *backend) LastStart(name string) (time.Time, bool) {
	f, _ := b.now()
	if name == pruneName {
		past := f.Results().Overall().Prune
		return past.Scheduled, past.Unfinished()
	}
	r := f.Results().Machine(ident.MachineName(name))
	return r.Scheduled, r.Unfinished()
}

// Start implements service.Backend.
func (b *backend) Start(name string, at time.Time) error {
	f, _ := b.now()
	if name == pruneName {
		return pruneBegun(f, at)
	}
	return f.Results().Update(ident.MachineName(name), func(r *state.Result) { r.Scheduled = at })
}

// Run implements service.Backend.
func (b *backend) Run(ctx context.Context, name string) {
	f, machines := b.now()
	if name == pruneName {
		b.prune(ctx, f, machines)
		return
	}
	i := slices.IndexFunc(machines, func(m fleet.Machine) bool { return string(m.Name) == name })
	if i < 0 {
		return // it left the configuration in this moment
	}
	stats := new(agent.Stats)
	b.mu.Lock()
	b.running[name] = running{time.Now(), stats}
	looked := b.ahead.at[name]
	b.mu.Unlock()
	if looked != nil {
		select {
		case <-looked:
		case <-ctx.Done():
		}
	}
	defer func() {
		b.mu.Lock()
		delete(b.running, name)
		b.mu.Unlock()
	}()
	logBegin(b.log, name)
	e := f.Backup(ctx, machines[i], stats)
	b.reportAlarms(e)
	logEnd(b.log, e)
	b.keepStoreCounters(f.Results())
	_, machines = b.now()
	b.writeMetrics(b.local, machines, len(b.problemsTold()))
}

// prune deletes what nothing needs.
func (b *backend) prune(ctx context.Context, f *fleet.Fleet, machines []fleet.Machine) {
	began := time.Now()
	b.log.Info("prune begins")
	err := b.pruneMachines(ctx, f, machines)
	o := f.Results().Overall().Prune
	fields := []any{"duration_seconds", time.Since(began).Seconds(), "objects_total", o.Objects, "bytes_total", o.Bytes}
	if err != nil {
		b.log.Error("prune ended", append(fields, "class", exitClass(err), "error", err.Error())...)
	} else {
		b.log.Info("prune ended", fields...)
	}
	b.keepStoreCounters(f.Results())
	_, machines = b.now()
	b.writeMetrics(b.local, machines, len(b.problemsTold()))
}

func (b *backend) problemsTold() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.problems
}

// Progress implements service.Backend.
func (b *backend) Progress(name string) uint64 {
	if name == pruneName {
		return countersOf(b.storeStats).Sum()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if r, ok := b.running[name]; ok {
		return r.stats.Progress()
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
