package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/target"
)

// Options of New. Host, State, Place and Open are needed.
type Options struct {
	Host  *target.Host
	State *state.State
	Place string // the repository as it is configured
	// Open opens the repository. It is asked again as long as it fails.
	Open func(context.Context) (*repo.Repository, error)
	// Agent is what all backups have in common; Stats are each machine's own.
	Agent agent.Options
	// Class gives the class of an error in the words of the exit codes; nil: none.
	Class func(error) string
	// Note is told what is no error and yet worth a line; nil: nobody is.
	Note func(string)
}

// Fleet backs machines up.
type Fleet struct {
	o       Options
	results *state.Results

	mu         sync.Mutex
	repository *repo.Repository
}

// New makes a fleet. Nothing is opened yet.
func New(o Options) *Fleet {
	if o.Class == nil {
		o.Class = func(error) string { return "" }
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if o.Agent.Clock == nil {
		o.Agent.Clock = time.Now
	}
	if o.Agent.Host == "" {
		o.Agent.Host, _ = os.Hostname() // without one documents say less
	}
	return &Fleet{o: o, results: o.State.Results(o.Place)}
}

// Results are what is remembered of the machines.
func (f *Fleet) Results() *state.Results { return f.results }

// Repository opens the repository when it is first needed, and tries its store out.
func (f *Fleet) Repository(ctx context.Context) (*repo.Repository, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.repository == nil {
		r, err := f.o.Open(ctx)
		if err != nil {
			return nil, err
		}
		f.repository = r
	}
	err := agent.CheckStore(ctx, f.repository, f.o.State.Repository(f.repository.ID()), func(err error) { f.o.Note(err.Error()) })
	return f.repository, err
}

// Run backs machines up, parallel of them at once, and returns their endings in the order
// of the machines. A machine whose turn does not come before ctx ends has none.
// began is told of each before, and ended after it; both may be called in parallel.
func (f *Fleet) Run(ctx context.Context, machines []Machine, parallel int, began func(Machine), ended func(agent.Ending)) []agent.Ending {
	endings := make([]agent.Ending, len(machines))
	var group errgroup.Group
	group.SetLimit(max(parallel, 1))
	for i, m := range machines {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if ctx.Err() == nil {
				began(m)
				endings[i] = f.Backup(ctx, m, new(agent.Stats))
				ended(endings[i])
			}
			return nil
		})
	}
	_ = group.Wait() // no function fails
	return endings
}

// Backup backs one machine up, and remembers how it ended.
func (f *Fleet) Backup(ctx context.Context, m Machine, stats *agent.Stats) agent.Ending {
	e := agent.Ending{Machine: m.Name, Start: f.o.Agent.Clock()}
	e.Summary, e.Err = f.attempt(ctx, m, stats)
	e.End = f.o.Agent.Clock()
	e.Class = f.o.Class(e.Err)
	// Another's run is no attempt of this machine's that ended.
	if !errors.Is(e.Err, state.ErrBusy) {
		if err := agent.Remember(f.results, e); err != nil {
			f.o.Note(err.Error())
		}
	}
	if !e.Summary.Point.IsZero() {
		f.keep(ctx, m)
	}
	return e
}

// attempt is a backup with what the operator wants done before and after.
func (f *Fleet) attempt(ctx context.Context, m Machine, stats *agent.Stats) (s agent.Summary, err error) {
	s.Machine = m.Name
	env := []string{"QBACKUP_MACHINE=" + string(m.Name)}
	defer func() {
		env = append(env, "QBACKUP_STATUS="+string(agent.Ending{Err: err}.Status()), "QBACKUP_POINT=")
		if !s.Point.IsZero() {
			env[len(env)-1] += s.Point.String()
		}
		for _, hook := range m.Hooks.After {
			// Also of a run that is interrupted: what was stopped before must go on.
			if hookErr := m.Hooks.run(context.WithoutCancel(ctx), hook, env); hookErr != nil {
				err = errors.Join(err, fmt.Errorf("after the backup: %w", hookErr))
			}
		}
	}()
	for _, hook := range m.Hooks.Before {
		if err := m.Hooks.run(ctx, hook, env); err != nil {
			return s, fmt.Errorf("before the backup: %w", err)
		}
	}
	return f.backup(ctx, m, stats)
}

func (f *Fleet) backup(ctx context.Context, m Machine, stats *agent.Stats) (s agent.Summary, err error) {
	s.Machine = m.Name
	t, err := f.o.Host.Choose(ctx, m.Spec)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	repository, err := f.Repository(ctx)
	if err != nil {
		return s, err
	}
	if err := f.recall(ctx, repository, m.Name); err != nil {
		return s, err
	}
	o := f.o.Agent
	o.Stats = stats
	return agent.Backup(ctx, agent.Job{
		Machine: m.Name, Repository: repository, State: f.o.State.Repository(repository.ID()), Open: t.Open,
	}, o)
}
