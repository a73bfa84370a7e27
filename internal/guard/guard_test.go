package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qmp"
)

func TestAThingIsHeldUntilItIsReleased(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	if sid, err := unix.Getsid(g.Pid()); err != nil || sid != g.Pid() {
		t.Errorf("the guard's session is %d, %v", sid, err)
	}
	for n := range 3 {
		before := time.Now()
		h := w.hold(g, "freeze", 0)
		if h.Count != fileSystems || h.At.Before(before) || h.At.After(time.Now()) {
			t.Errorf("%+v", h)
		}
		if frozen, _ := w.machine.state(); frozen != fileSystems {
			t.Fatal("not frozen")
		}
		if got := w.markers(); len(got) != 1 || got[0] != "run-1-freeze.held" {
			t.Fatalf("markers %v", got)
		}
		if undone, err := Recover(t.Context(), w.spec.Folder, nil); len(undone) > 0 || err != nil {
			t.Fatalf("the marker of a guard that lives: %v, %v", undone, err)
		}
		r := w.release(g, "freeze")
		if r.For <= 0 || r.For > time.Since(before) {
			t.Errorf("frozen for %v", r.For)
		}
		if r.For = 0; r != (Released{By: ByRelease, Frozen: fileSystems, Thawed: fileSystems}) || r.Broken() != "" {
			t.Errorf("%+v", r)
		}
		w.nothingIsLeft()
		if c := w.machine.count("guest-fsfreeze-thaw"); c != n+1 {
			t.Errorf("%d thaws", c)
		}
	}
	w.done(g)
	if w.cleanedUp() != 0 || alive(g.Pid()) {
		t.Errorf("%d cleanups; the guard lives: %v", w.cleanedUp(), alive(g.Pid()))
	}
	if _, err := g.Hold(t.Context(), "freeze", 0); err == nil {
		t.Error("a hold after Done")
	}
}

func TestSeveralThingsAreHeldAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	w.hold(g, "freeze", 0)
	w.hold(g, "suspend", 0)
	if got := fmt.Sprint(w.markers()); !w.isSuspended() || got != "[run-1-freeze.held run-1-suspend.held]" {
		t.Errorf("suspended: %v, markers %s", w.isSuspended(), got)
	}
	if _, err := g.Hold(t.Context(), "suspend", 0); !errors.Is(err, ErrNotHeld) || !w.isSuspended() {
		t.Errorf("held twice: %v", err)
	}
	if r := w.release(g, "suspend"); r.Broken() != "" || w.isSuspended() {
		t.Errorf("%+v", r)
	}
	if frozen, _ := w.machine.state(); frozen == 0 {
		t.Error("the other was released, too")
	}
	if _, err := g.Release(t.Context(), "suspend"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("released twice: %v", err)
	}
	w.hold(g, "suspend", 0)
	w.done(g) // undoes both
}

func TestWhyAThingWasNotInForceToTheEnd(t *testing.T) {
	for want, r := range map[string]Released{
		"":                                      {By: ByRelease, Frozen: 2, Thawed: 2, For: time.Second},
		"2 of 3 file systems had thawed before": {By: ByRelease, Frozen: 3, Thawed: 1},
		"it was undone after 5s, when its time was over": {By: ByBudget, Frozen: 2, Thawed: 2, For: 5*time.Second + 1},
		"the guard process was told to end":              {By: BySignal},
		"a process that held it has died":                {By: ByDeath},
		`it was undone by "somebody"`:                    {By: "somebody"},
	} {
		if got := r.Broken(); got != want {
			t.Errorf("%+v: %q", r, got)
		}
	}
}

func TestABudgetIsNeverExceeded(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	const budget = 500 * time.Millisecond
	w.hold(g, "freeze", budget)
	w.hold(g, "suspend", budget)
	eventually(t, "undone", func() bool {
		frozen, _ := w.machine.state()
		return frozen == 0 && !w.isSuspended()
	})
	if _, longest := w.machine.state(); longest > budget+10*time.Second {
		t.Errorf("frozen for %v", longest)
	}
	for _, name := range []string{"freeze", "suspend"} {
		if r := w.release(g, name); r.By != ByBudget || r.Broken() == "" || r.For < budget {
			t.Errorf("%+v", r)
		}
	}
	w.hold(g, "freeze", 0) // it can be tried again
	w.done(g)
}

func TestAGuardThatIsToldToEndUndoesAtOnce(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			w := newWorld(t, nil)
			g := w.start()
			w.hold(g, "freeze", time.Minute)
			w.hold(g, "suspend", time.Minute)
			signalTo(t, g.Pid(), s)
			eventually(t, "undone", func() bool {
				frozen, _ := w.machine.state()
				return frozen == 0 && !w.isSuspended() && len(w.markers()) == 0
			})
			signalTo(t, g.Pid(), s)
			if _, err := g.Hold(t.Context(), "freeze", 0); !errors.Is(err, ErrNotHeld) {
				t.Errorf("held after the signal: %v", err)
			}
			if r := w.release(g, "freeze"); r.By != BySignal || r.Thawed != fileSystems || r.Broken() == "" {
				t.Errorf("%+v", r)
			}
			if w.cleanedUp() != 0 || !alive(g.Pid()) {
				t.Error("it has not waited for its parent")
			}
			w.done(g)
			if w.cleanedUp() != 0 {
				t.Error("it has cleaned up though all was done")
			}
		})
	}
}

func TestTheParentUndoesWhatADeadGuardHeld(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	w.hold(g, "freeze", time.Minute)
	w.hold(g, "suspend", time.Minute)
	signalTo(t, g.Pid(), syscall.SIGKILL)
	<-g.dead
	w.nothingIsLeft()
	if r := w.release(g, "freeze"); r.By != ByDeath || r.Broken() == "" {
		t.Errorf("%+v", r)
	}
	if _, err := g.Hold(t.Context(), "freeze", 0); !errors.Is(err, ErrGuard) {
		t.Errorf("held by the dead: %v", err)
	}
	if err := g.Done(); !errors.Is(err, ErrGuard) {
		t.Errorf("%v", err)
	}
}

func TestAGuardThatStandsStillIsReplaced(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	w.hold(g, "freeze", time.Minute)
	g.slack, g.spec.Persist = 50*time.Millisecond, 100*time.Millisecond
	signalTo(t, g.Pid(), syscall.SIGSTOP)
	if r := w.release(g, "freeze"); r.By != ByDeath || r.Broken() == "" {
		t.Errorf("%+v", r)
	}
	w.nothingIsLeft()
}

func TestAHoldThatIsGivenUpIsUndone(t *testing.T) {
	reached, goOn := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(command string, _ net.Conn) string {
		if command == "guest-fsfreeze-freeze" {
			close(reached)
			<-goOn
		}
		return ""
	})
	g := w.start()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
		close(goOn)
	}()
	if _, err := g.Hold(ctx, "freeze", time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	eventually(t, "undone", func() bool { return len(w.markers()) == 0 })
	w.done(g)
}

func TestAnAgentThatDoesNotAnswer(t *testing.T) {
	w := newWorld(t, func(string, net.Conn) string { return "\n" })
	g := w.start()
	started := time.Now()
	_, err := g.Hold(t.Context(), "freeze", 150*time.Millisecond)
	if !errors.Is(err, ErrNotHeld) || !errors.Is(err, qmp.ErrAgent) {
		t.Errorf("%v", err)
	}
	if took := time.Since(started); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	w.machine.off()
	if _, err := g.Hold(t.Context(), "freeze", 0); !errors.Is(err, ErrNotHeld) || !errors.Is(err, qmp.ErrNobody) {
		t.Errorf("no machine: %v", err)
	}
	if n := w.machine.count("guest-fsfreeze-freeze"); n != 0 {
		t.Errorf("%d freezes were sent", n)
	}
	w.machine.on()
	w.done(g)
}

func TestDoneEndsAHoldUnderWay(t *testing.T) {
	for _, stuckAt := range []string{"guest-sync-delimited", "guest-fsfreeze-freeze"} {
		reached, goOn := make(chan struct{}), make(chan struct{})
		var first sync.Once
		w := newWorld(t, func(command string, _ net.Conn) string {
			if command == stuckAt {
				first.Do(func() {
					close(reached)
					<-goOn
				})
			}
			return ""
		})
		g := w.start()
		failed := make(chan error, 1)
		go func() {
			_, err := g.Hold(t.Context(), "freeze", time.Minute)
			failed <- err
		}()
		<-reached
		time.AfterFunc(50*time.Millisecond, func() { close(goOn) })
		w.done(g)
		if err := <-failed; !errors.Is(err, ErrNotHeld) {
			t.Errorf("%v", err)
		}
	}
}

func TestAnAgentThatRefuses(t *testing.T) {
	w := newWorld(t, func(command string, _ net.Conn) string {
		if command == "guest-fsfreeze-freeze" {
			return `{"error": {"class": "GenericError", "desc": "/data is busy"}}` + "\n"
		}
		return ""
	})
	g := w.start()
	if _, err := g.Hold(t.Context(), "freeze", 0); !errors.Is(err, ErrNotHeld) || !strings.Contains(err.Error(), "/data is busy") {
		t.Errorf("%v", err)
	}
	w.done(g)
	if n := w.machine.count("guest-fsfreeze-thaw"); n != 0 {
		t.Errorf("%d thaws of what was not frozen", n)
	}
}

func TestAFreezeThatComesLateIsThawed(t *testing.T) {
	stuck := make(chan struct{})
	w := newWorld(t, func(command string, _ net.Conn) string {
		if command == "guest-fsfreeze-freeze" {
			<-stuck
		}
		return ""
	})
	g := w.start()
	if _, err := g.Hold(t.Context(), "freeze", time.Second); !errors.Is(err, ErrNotHeld) || !errors.Is(err, qmp.ErrAgent) {
		t.Errorf("%v", err)
	}
	if _, err := g.Hold(t.Context(), "freeze", 0); !errors.Is(err, ErrNotHeld) {
		t.Errorf("before that is settled: %v", err)
	}
	close(stuck)
	w.done(g)
	if freezes, thaws := w.machine.count("guest-fsfreeze-freeze"), w.machine.count("guest-fsfreeze-thaw"); freezes != 1 || thaws == 0 {
		t.Errorf("%d freezes, %d thaws", freezes, thaws)
	}
}

func TestAnAgentThatIsStartedAgain(t *testing.T) {
	var cut atomic.Bool
	w := newWorld(t, func(command string, conn net.Conn) string {
		if command == "guest-fsfreeze-thaw" && cut.CompareAndSwap(false, true) {
			conn.Close()
			return " "
		}
		return ""
	})
	g := w.start()
	w.hold(g, "freeze", 0)
	if r := w.release(g, "freeze"); r.Thawed != fileSystems || r.Broken() != "" {
		t.Errorf("%+v", r)
	}
	w.done(g)
}

func TestAMachineThatEndsWhileItIsFrozen(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	w.hold(g, "freeze", 0)
	w.machine.off()
	if r := w.release(g, "freeze"); r.By != ByRelease || r.Broken() == "" {
		t.Errorf("%+v", r)
	}
	w.machine.on()
	w.done(g)
}

func TestAGuestThatThawsByItself(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	w.hold(g, "freeze", 0)
	w.machine.mu.Lock()
	w.machine.frozen-- // as Windows does after ten seconds, with all of them
	w.machine.mu.Unlock()
	if r := w.release(g, "freeze"); r.By != ByRelease || r.Frozen != fileSystems || r.Thawed != fileSystems-1 || r.Broken() == "" {
		t.Errorf("%+v", r)
	}
	w.done(g)
}

func TestWhatCannotBeUndoneIsSaidAndLeftToRecover(t *testing.T) {
	var broken atomic.Bool
	w := newWorld(t, func(command string, _ net.Conn) string {
		if command == "guest-fsfreeze-thaw" && broken.Load() {
			return `{"error": {"class": "GenericError", "desc": "cannot"}}` + "\n"
		}
		return ""
	})
	w.spec.Persist = 1500 * time.Millisecond
	g := w.start()
	broken.Store(true)
	w.hold(g, "freeze", 0)
	if _, err := g.Release(t.Context(), "freeze"); !errors.Is(err, ErrNotUndone) || !strings.Contains(err.Error(), "cannot") {
		t.Errorf("%v", err)
	}
	if got := w.markers(); len(got) != 1 {
		t.Errorf("markers %v", got)
	}
	if n := w.machine.count("guest-fsfreeze-thaw"); n < 2 {
		t.Errorf("it was tried %d times", n)
	}
	if err := g.Done(); err != nil { // Release has said it
		t.Error(err)
	}
	_, err := Recover(t.Context(), w.spec.Folder, nil)
	if !errors.Is(err, ErrNotUndone) || !strings.Contains(err.Error(), w.markers()[0]) {
		t.Errorf("%v", err)
	}
	broken.Store(false)
	undone, err := Recover(t.Context(), w.spec.Folder, nil)
	if err != nil || len(undone) != 1 || undone[0].ID != "run-1" || undone[0].Name != "freeze" || time.Since(undone[0].Since) > time.Minute {
		t.Errorf("%v, %v", undone, err)
	}
	w.nothingIsLeft()

	// Done says what nobody has released.
	g = w.start()
	broken.Store(true)
	w.hold(g, "freeze", 0)
	if err := g.Done(); !errors.Is(err, ErrNotUndone) {
		t.Errorf("%v", err)
	}
}

func TestThingsThatProgramsDo(t *testing.T) {
	w := newWorld(t, nil)
	tried := filepath.Join(w.dir, "tried")
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	w.spec.Actions = map[string]Action{
		"counted":  {Exec: &Exec{Do: sh("echo Froze 2 filesystems"), Undo: sh("echo Thawed 1 filesystem of 7"), Counts: true}},
		"wordless": {Exec: &Exec{Do: sh("echo OK"), Undo: sh("echo OK"), Counts: true}},
		"refused":  {Exec: &Exec{Do: sh("echo no\tsuch domain >&2; exit 1"), Undo: sh("echo x >>" + tried + "; exit 1")}},
		"missing":  {Exec: &Exec{Do: []string{filepath.Join(w.dir, "none")}, Undo: sh("echo x >>" + tried)}},
		"endless":  {Exec: &Exec{Do: sh("touch " + w.suspended + "; exec sleep 100"), Undo: []string{"rm", w.suspended}}},
		"deaf":     {Exec: &Exec{Do: sh("trap '' TERM; touch " + w.suspended + "; while :; do sleep 0.1; done"), Undo: []string{"rm", w.suspended}}},
		"language": {Exec: &Exec{Do: sh(`test "$LC_ALL" = C && ! read x`), Undo: sh("true")}},
		"late":     {Exec: &Exec{Do: sh("true"), Undo: sh("echo x >>" + tried + "; test $(wc -l <" + tried + ") -ge 4")}},
	}
	lines := func() int {
		text, _ := os.ReadFile(tried)
		return strings.Count(string(text), "\n")
	}
	g := w.start()
	if h := w.hold(g, "counted", 0); h.Count != 2 {
		t.Errorf("%+v", h)
	}
	if r := w.release(g, "counted"); r.Frozen != 2 || r.Thawed != 1 || r.Broken() == "" {
		t.Errorf("%+v", r)
	}
	w.hold(g, "wordless", 0)
	if r := w.release(g, "wordless"); r.Broken() != "" {
		t.Errorf("%+v", r)
	}
	if _, err := g.Hold(t.Context(), "refused", 0); !errors.Is(err, ErrNotHeld) || !strings.Contains(err.Error(), "no such domain") {
		t.Errorf("%v", err)
	}
	eventually(t, "tried to undo", func() bool { return lines() == 1 && len(w.markers()) == 0 })
	if _, err := g.Hold(t.Context(), "missing", 0); !errors.Is(err, ErrNotHeld) || lines() != 1 {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"endless", "deaf"} {
		if _, err := g.Hold(t.Context(), name, 100*time.Millisecond); !errors.Is(err, ErrNotHeld) {
			t.Errorf("%v", err)
		}
		eventually(t, "undone", func() bool { return !w.isSuspended() && len(w.markers()) == 0 })
	}
	w.hold(g, "language", 0)
	w.release(g, "language")
	w.hold(g, "late", 0)
	if r := w.release(g, "late"); r.Broken() != "" || lines() != 4 {
		t.Errorf("%+v after %d tries", r, lines())
	}
	w.done(g)
}

func TestThereMustBeAGuard(t *testing.T) {
	w := newWorld(t, nil)
	for name, argv := range map[string][]string{
		"nothing":               {},
		"no such program":       {filepath.Join(w.dir, "none")},
		"a program that ends":   {"true"},
		"a program that fails":  {"false"},
		"one that says nothing": {"sh", "-c", "exec cat >/dev/null"},
		"one that talks":        {"sh", "-c", "yes"},
		"one that repeats":      {"cat"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		g, err := Start(ctx, argv, w.spec)
		cancel()
		if name == "one that repeats" && err == nil { // what it is asked looks like an answer
			_, err = g.Hold(t.Context(), "freeze", 0)
			_ = g.Done()
		}
		if err == nil || !errors.Is(err, ErrGuard) && !errors.Is(err, ErrSpec) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Spec){
		"a relative folder": func(s *Spec) { s.Folder = "x" },
		"no id":             func(s *Spec) { s.ID = "" },
		"a path for an id":  func(s *Spec) { s.ID = "../x" },
		"an odd name":       func(s *Spec) { s.Actions = map[string]Action{"a-b": {Agent: "x"}} },
		"no action":         func(s *Spec) { s.Actions = map[string]Action{"a": {}} },
		"two actions":       func(s *Spec) { s.Actions = map[string]Action{"a": {Agent: "x", Exec: &Exec{}}} },
		"no program":        func(s *Spec) { s.Actions = map[string]Action{"a": {Exec: &Exec{Do: []string{"x"}}}} },
		"too much":          func(s *Spec) { s.Cleanup = []byte(`"` + strings.Repeat("x", lineBytesMax) + `"`) },
	} {
		spec := w.spec
		change(&spec)
		if _, err := Start(t.Context(), self(t), spec); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := w.start()
	if _, err := g.Hold(t.Context(), "else", 0); !errors.Is(err, ErrSpec) {
		t.Errorf("%v", err)
	}
	w.done(g)
}

func TestWithoutAMarkerNothingIsDone(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	if err := os.RemoveAll(w.spec.Folder); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Hold(t.Context(), "freeze", 0); !errors.Is(err, ErrNotHeld) {
		t.Errorf("%v", err)
	}
	w.done(g)
	if n := w.machine.count("guest-fsfreeze-freeze"); n != 0 {
		t.Errorf("%d freezes", n)
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.spec.Actions = map[string]Action{}
	for n := range 8 {
		file := filepath.Join(w.dir, fmt.Sprint("thing", n))
		w.spec.Actions[fmt.Sprint("thing", n)] = Action{Exec: &Exec{Do: []string{"touch", file}, Undo: []string{"rm", file}}}
	}
	g := w.start()
	var all sync.WaitGroup
	for name := range w.spec.Actions {
		all.Go(func() {
			for range 3 {
				if _, err := g.Hold(t.Context(), name, 20*time.Second); err != nil {
					t.Error(err)
				}
				if r, err := g.Release(t.Context(), name); err != nil || r.Broken() != "" {
					t.Errorf("%+v, %v", r, err)
				}
			}
		})
	}
	all.Wait()
	w.done(g)
}
