package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/schedule"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a Backend whose backups take a while.
type host struct {
	testing.TB
	mu         sync.Mutex
	machines   []Machine
	last       map[string]time.Time
	unfinished map[string]bool
	takes      map[string]time.Duration // one minute where there is none
	hangs      bool                     // progress stands still
	deaf       bool                     // a cut is not heard
	running    map[string]bool
	most       int
	ran        []string // "name@time", and "name cut" for one that was cancelled
	notified   []string
	said       []string
	broken     error // of Reload
	fresh      []Machine
	refuse     error // of Start
	progress   uint64
}

func newHost(t testing.TB) *host {
	return &host{TB: t, last: map[string]time.Time{}, takes: map[string]time.Duration{}, running: map[string]bool{}}
}

func (h *host) add(name, expression string) {
	s, err := schedule.Parse(expression)
	if err != nil {
		h.Fatal(err)
	}
	h.machines = append(h.machines, Machine{Name: name, Schedule: s})
	h.last[name] = time.Now()
}

func (h *host) Machines(context.Context) []Machine {
	defer h.lock()()
	return h.machines
}

func (h *host) LastStart(name string) (time.Time, bool) {
	defer h.lock()()
	return h.last[name], h.unfinished[name]
}

func (h *host) Start(name string, at time.Time) error {
	defer h.lock()()
	if h.refuse == nil {
		h.last[name] = at
	}
	return h.refuse
}

func (h *host) lock() (unlock func()) {
	h.mu.Lock()
	return h.mu.Unlock
}

func (h *host) Run(ctx context.Context, name string) {
	h.mu.Lock()
	if h.running[name] {
		h.Errorf("%s is run twice at once", name)
	}
	h.running[name] = true
	h.most = max(h.most, len(h.running))
	h.ran = append(h.ran, name+"@"+time.Now().UTC().Format("15:04"))
	takes := h.takes[name]
	h.mu.Unlock()
	if takes == 0 {
		takes = time.Minute
	}
	cut := ctx.Done()
	if h.deaf {
		cut = nil
	}
	select {
	case <-time.After(takes):
	case <-cut:
		h.mu.Lock()
		h.ran = append(h.ran, name+" cut")
		h.mu.Unlock()
	}
	h.mu.Lock()
	delete(h.running, name)
	h.mu.Unlock()
}

func (h *host) Progress(string) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.hangs {
		h.progress++
	}
	return h.progress
}

func (h *host) Reload(context.Context) error {
	defer h.lock()()
	if h.broken == nil {
		h.machines = h.fresh
	}
	return h.broken
}

func (h *host) options() Options {
	return Options{
		Parallel: func() int { return 2 }, StopWithin: 5 * time.Minute, Stall: 20 * time.Minute,
		Notify: func(state string) { h.mu.Lock(); h.notified = append(h.notified, state); h.mu.Unlock() },
		Say:    func(format string, args ...any) { h.said = append(h.said, fmt.Sprintf(format, args...)) },
		Note:   func(format string, args ...any) { h.said = append(h.said, fmt.Sprintf(format, args...)) },
	}
}

// serve serves for a while, and then stops.
func (h *host) serve(o Options, during func()) {
	ctx, cancel := context.WithCancel(h.Context())
	var all sync.WaitGroup
	all.Go(func() { Run(ctx, h, o) })
	during()
	cancel()
	all.Wait()
}

func (h *host) notifiedOf(prefix string) (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.notified {
		if strings.HasPrefix(n, prefix) {
			list = append(list, n)
		}
	}
	return list
}

func TestMachinesAreRunWhenTheyAreDueAndNoMoreThanAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		for i := range 5 {
			h.add(fmt.Sprintf("m%d", i), "0 1 * * *")
		}
		h.add("often", "*/30 * * * *")
		h.last["m3"] = time.Now().Add(-48 * time.Hour) // missed a day
		h.serve(h.options(), func() { time.Sleep(3 * time.Hour) })
		if h.most != 2 {
			t.Errorf("%d at once", h.most)
		}
		counts := map[string]int{}
		for _, r := range h.ran {
			name, _, _ := strings.Cut(r, "@")
			counts[name]++
		}
		if h.ran[0] != "m3@00:00" || counts["m3"] != 2 || counts["m0"] != 1 || counts["often"] < 5 {
			t.Errorf("%v", h.ran)
		}
		if !slices.Contains(h.ran, "m0@01:00") || h.notified[0] != "READY=1" || !slices.ContainsFunc(h.notifiedOf("STATUS="), func(s string) bool { return strings.Contains(s, "next often at Jan 1 00:30") }) {
			t.Errorf("%v, %v", h.ran, h.notified)
		}
	})
}

func TestAMachineThatTakesLongIsNotRunTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("slow", "*/10 * * * *")
		h.takes["slow"] = 25 * time.Minute
		h.serve(h.options(), func() { time.Sleep(90 * time.Minute) })
		if want := []string{"slow@00:10", "slow@00:35", "slow@01:00", "slow@01:25"}; !slices.Equal(h.ran[:4], want) {
			t.Errorf("%v", h.ran)
		}
	})
}

func TestANewConfigurationDropsNothingThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("a", "10 0 * * *")
		h.takes["a"] = time.Hour
		o := h.options()
		reload := make(chan struct{})
		o.Reload = reload
		h.serve(o, func() {
			time.Sleep(20 * time.Minute)
			unlock := h.lock()
			h.broken = errors.New("line 3 is wrong")
			unlock()
			reload <- struct{}{}
			time.Sleep(time.Minute)
			unlock = h.lock()
			h.broken = nil
			h.fresh = []Machine{{Name: "b", Schedule: h.machines[0].Schedule}}
			h.last["b"] = time.Now().Add(-time.Hour)
			unlock()
			reload <- struct{}{}
			time.Sleep(2 * time.Hour)
		})
		if !slices.Equal(h.ran, []string{"a@00:10", "b@00:21"}) {
			t.Errorf("%v", h.ran)
		}
		if len(h.said) != 2 || !strings.Contains(h.said[0], "the old one holds: line 3 is wrong") {
			t.Errorf("%q", h.said)
		}
		if got := h.notifiedOf("RELOADING=1\nMONOTONIC_USEC="); len(got) != 2 || len(h.notifiedOf("READY=1")) != 3 {
			t.Errorf("%q", h.notified)
		}
	})
}

func TestAStopWaitsForWhatRunsAndThenCutsItShort(t *testing.T) {
	for takes, want := range map[time.Duration][]string{
		4 * time.Minute: {"a@00:10"},
		time.Hour:       {"a@00:10", "a cut"},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t)
			h.add("a", "10 0 * * *")
			h.add("b", "12 0 * * *")
			h.takes["a"] = takes
			h.serve(h.options(), func() { time.Sleep(11 * time.Minute) })
			if !slices.Equal(h.ran, want) {
				t.Errorf("%v: %v", takes, h.ran)
			}
			if len(h.notifiedOf("STOPPING=1")) != 1 || len(h.notifiedOf("EXTEND_TIMEOUT_USEC=20000000")) < 30 {
				t.Errorf("%v", h.notified)
			}
			if since := time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)); since > 17*time.Minute {
				t.Errorf("stopped after %v", since)
			}
		})
	}
}

func TestAStopDoesNotKeepSystemdFromEndingWhatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("a", "10 0 * * *")
		h.takes["a"], h.deaf = 2*time.Hour, true
		h.serve(h.options(), func() { time.Sleep(11 * time.Minute) })
		if n := len(h.notifiedOf("EXTEND_TIMEOUT_USEC=")); n < 100 || n > 121 {
			t.Errorf("more time was asked for %d times", n)
		}
		if !slices.ContainsFunc(h.said, func(s string) bool { return strings.Contains(s, "these do not end: [a]") }) {
			t.Errorf("%q", h.said)
		}
	})
}

func TestAnUpgradeCutsNothingShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("a", "10 0 * * *")
		h.add("b", "12 0 * * *")
		h.takes["a"] = time.Hour
		o := h.options()
		began := time.Now()
		o.Outdated = func() bool { return time.Since(began) > 11*time.Minute }
		Run(t.Context(), h, o)
		if since := time.Since(began); !slices.Equal(h.ran, []string{"a@00:10"}) || since < 70*time.Minute || since > 71*time.Minute {
			t.Errorf("%v, after %s", h.ran, since)
		}
		if len(h.notifiedOf("STOPPING=1")) != 1 || len(h.said) != 1 {
			t.Errorf("%v, %v", h.notified, h.said)
		}
	})
}

func TestTheWatchdogIsFedByProgressOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("a", "10 0 * * *")
		h.takes["a"] = 3 * time.Hour
		o := h.options()
		o.Watchdog = time.Minute
		h.serve(o, func() {
			time.Sleep(time.Hour)
			if n := len(h.notifiedOf("WATCHDOG=1")); n < 118 || n > 121 {
				t.Errorf("%d pings in an hour", n)
			}
			h.mu.Lock()
			h.hangs = true
			h.mu.Unlock()
			before := len(h.notifiedOf("WATCHDOG=1"))
			time.Sleep(time.Hour)
			if n := len(h.notifiedOf("WATCHDOG=1")) - before; n < 38 || n > 41 {
				t.Errorf("%d pings without progress, 20 minutes are allowed", n)
			}
		})
		if len(h.said) == 0 || !strings.Contains(h.said[0], "machine a has made no progress for 20m") {
			t.Errorf("%q", h.said[:min(1, len(h.said))])
		}
	})
}

func TestAMachineWhoseStartCannotBeWrittenDownIsNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("a", "10 0 * * *")
		h.refuse = errors.New("the disk is full")
		h.serve(h.options(), func() { time.Sleep(11 * time.Minute) })
		if len(h.ran) != 0 || len(h.said) == 0 || h.said[0] != "machine a is not begun: the disk is full" {
			t.Errorf("%v, %q", h.ran, h.said)
		}
	})
}

func TestAfterTheClockWasSetBackByADayTheScheduleGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("a", "0 2 * * *")
		h.last["a"] = time.Now().Add(26 * time.Hour)
		h.serve(h.options(), func() { time.Sleep(3 * time.Hour) })
		if !slices.Equal(h.ran, []string{"a@02:00"}) {
			t.Errorf("%v", h.ran)
		}
	})
}

func TestWhatAnEarlierLifeDidNotFinishIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.add("a", "0 2 * * *")
		h.unfinished = map[string]bool{"a": true}
		h.serve(h.options(), func() {
			time.Sleep(20 * time.Minute)
			defer h.lock()()
			h.unfinished = nil
		})
		if !slices.Equal(h.ran, []string{"a@00:15"}) {
			t.Errorf("%v", h.ran)
		}
	})
}
