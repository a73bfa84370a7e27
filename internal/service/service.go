package service

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/qbackup/qbackup/internal/schedule"
)

// Machine is something to be backed up when it is due.
type Machine struct {
	Name     string
	Schedule *schedule.Schedule
	Jitter   time.Duration
}

// Backend is what the service schedules. Run and Progress are called by several
// goroutines, the rest by one.
type Backend interface {
	// Machines are those that have a schedule. It is asked at every turn.
	Machines(ctx context.Context) []Machine
	// LastStart is when a machine was last begun because it was due, also before a restart,
	// and whether that came to no end.
	LastStart(name string) (last time.Time, unfinished bool)
	// Start writes that down. A machine is not run when it fails.
	Start(name string, at time.Time) error
	// Run backs a machine up, and says itself how that went.
	Run(ctx context.Context, name string)
	// Progress changes as long as a machine that is run gets on.
	Progress(name string) uint64
	// Reload takes a new configuration; after an error the old one holds.
	Reload(ctx context.Context) error
}

// Options of Run.
type Options struct {
	// Parallel bounds how many machines are run at once.
	Parallel func() int
	// Boot is when the host began to run.
	Boot time.Time
	// Reload asks for a new configuration.
	Reload <-chan struct{}
	// StopWithin is how long a stop waits for what runs before it is cut short.
	StopWithin time.Duration
	// Stall is how long a machine may make no progress before the service counts as hung.
	Stall time.Duration
	// Watchdog is how often systemd wants to hear of progress; 0: it does not.
	Watchdog time.Duration
	// Outdated tells whether another version of the program was installed: then nothing more is begun, and Run returns when
	// nothing runs any more, so that whoever started the service starts the new one. nil: it never is.
	Outdated func() bool
	// Notify tells systemd; see sd_notify(3).
	Notify func(state string)
	// Say is told what an operator should look after, Note what else he may want to know.
	Say, Note func(format string, args ...any)
}

const (
	// turn is the longest that the service does not look at the clock.
	turn = 30 * time.Second
	// cutTime is how long what was cut short may take to take down what it has set up.
	cutTime = 5 * time.Minute
	// extend is how often a stop that takes its time says so.
	extend = 5 * time.Second
)

// service is one call of Run.
type service struct {
	Options
	backend Backend
	running map[string]*job
	done    chan string // names of machines whose run has ended
	// next is when the next machine is due, as of the last turn; empty: none is.
	next     time.Time
	nextName string
	said     string // the last status
}

// job is a machine that is being run.
type job struct {
	progress uint64
	moved    time.Time // when progress changed
}

// Run serves until ctx ends. Then it begins nothing more, waits for what runs, and
// returns.
func Run(ctx context.Context, b Backend, o Options) {
	s := &service{Options: o, backend: b, running: map[string]*job{}, done: make(chan string)}
	// Jobs go on when ctx ends, for a while.
	jobs, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	s.Notify("READY=1")
	pings := s.pings()
	defer pings.Stop()
	for {
		if s.outdated() && len(s.running) == 0 {
			s.Note("another version was installed; this one ends so that it can start")
			s.Notify("STOPPING=1")
			return
		}
		timer := time.NewTimer(s.turn(ctx, jobs))
		select {
		case name := <-s.done:
			delete(s.running, name)
		case <-s.Reload:
			s.reload(ctx)
		case <-pings.C:
			s.ping()
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			s.stop(cut)
			return
		}
		timer.Stop()
	}
}

// turn begins what is due, as far as there is room, and says how long nothing else will be.
func (s *service) turn(ctx, jobs context.Context) time.Duration {
	now := time.Now()
	var due []dueMachine
	s.next, s.nextName = time.Time{}, ""
	for _, m := range s.backend.Machines(ctx) {
		if s.running[m.Name] != nil {
			continue
		}
		last, unfinished := s.backend.LastStart(m.Name)
		d := m.Schedule.Due(schedule.Past{Last: last, Unfinished: unfinished, Boot: s.Boot}, now, schedule.Delay(m.Name, m.Jitter))
		if !d.Last.Equal(last) {
			// The clock was set back by a lot.
			if err := s.backend.Start(m.Name, d.Last); err != nil {
				s.Say("%v", err)
			}
		}
		switch {
		case d.Due:
			due = append(due, dueMachine{m.Name, last})
		case !d.Next.IsZero() && (s.next.IsZero() || d.Next.Before(s.next)):
			s.next, s.nextName = d.Next, m.Name
		}
	}
	// Who has waited longest goes first.
	slices.SortStableFunc(due, func(a, b dueMachine) int { return a.last.Compare(b.last) })
	for len(due) > 0 && len(s.running) < max(s.Parallel(), 1) && ctx.Err() == nil && !s.outdated() {
		s.start(jobs, due[0].name, now)
		due = due[1:]
	}
	s.status(len(due))
	if s.next.IsZero() {
		return turn
	}
	return min(max(s.next.Sub(now), time.Second), turn)
}

func (s *service) outdated() bool { return s.Outdated != nil && s.Outdated() }

type dueMachine struct {
	name string
	last time.Time
}

func (s *service) start(jobs context.Context, name string, now time.Time) {
	// Before it begins: a run that ends with the program is not begun again and again.
	if err := s.backend.Start(name, now); err != nil {
		s.Say("machine %s is not begun: %v", name, err)
		return
	}
	s.running[name] = &job{progress: s.backend.Progress(name), moved: time.Now()}
	go func() {
		defer func() { s.done <- name }()
		s.backend.Run(jobs, name)
	}()
}

func (s *service) reload(ctx context.Context) {
	s.Notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonicMicros()))
	if err := s.backend.Reload(ctx); err != nil {
		s.Say("the new configuration is not taken, the old one holds: %v", err)
	} else {
		s.Note("the configuration was read again")
	}
	s.Notify("READY=1")
}

// status tells systemd what goes on, when that has changed.
func (s *service) status(waiting int) {
	text := fmt.Sprintf("%d running, %d waiting", len(s.running), waiting)
	if s.nextName != "" {
		text += fmt.Sprintf(", next %s at %s", s.nextName, s.next.Format("Jan 2 15:04"))
	}
	if text != s.said {
		s.said = text
		s.Notify("STATUS=" + text)
	}
}

// pings ticks twice as often as systemd wants to hear of progress.
func (s *service) pings() *time.Ticker {
	if s.Watchdog <= 0 {
		t := time.NewTicker(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTicker(s.Watchdog / 2)
}

// ping tells systemd that all is well, unless something that runs does not get on.
func (s *service) ping() {
	for name, j := range s.running {
		if p := s.backend.Progress(name); p != j.progress {
			j.progress, j.moved = p, time.Now()
		}
		if idle := time.Since(j.moved); idle > s.Stall {
			s.Say("machine %s has made no progress for %s; systemd will restart the service", name, idle.Round(time.Second))
			return
		}
	}
	s.Notify("WATCHDOG=1")
}

// stop waits for what runs; after a while it is cut short.
func (s *service) stop(cut context.CancelFunc) {
	s.Notify(fmt.Sprintf("STOPPING=1\nSTATUS=stopping, %d still running", len(s.running)))
	limit := time.NewTimer(s.StopWithin)
	defer limit.Stop()
	again := time.NewTicker(extend)
	defer again.Stop()
	var giveUp <-chan time.Time // then systemd may end what does not end itself
	for len(s.running) > 0 {
		select {
		case name := <-s.done:
			delete(s.running, name)
		case <-again.C:
			// Longer than until the next time that this is said.
			s.Notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nWATCHDOG=1", (4 * extend).Microseconds()))
		case <-limit.C:
			s.Say("cutting short: %s", names(s.running))
			cut()
			giveUp = time.After(cutTime)
		case <-giveUp:
			s.Say("these do not end: %s", names(s.running))
			again.Stop()
		}
	}
}

func names(running map[string]*job) string {
	list := make([]string, 0, len(running))
	for name := range running {
		list = append(list, name)
	}
	slices.SortFunc(list, cmp.Compare[string])
	return fmt.Sprint(list)
}
