package fleet_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/state"
)

// script makes a program of shell lines.
func (w *world) script(name, lines string) string {
	w.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o700); err != nil {
		w.Fatal(err)
	}
	return path
}

func (w *world) hooked(h fleet.Hooks) fleet.Machine {
	w.Helper()
	machines, problems := fleet.Expand(w.Context(), []fleet.Entry{{Spec: offlineSpec(w.image("a.qcow2")), Policy: fleet.Policy{Hooks: h}}})
	if len(problems) > 0 {
		w.Fatal(problems)
	}
	return machines[0]
}

func TestHooksAreRunBeforeAndAfter(t *testing.T) {
	w := newWorld(t)
	log := filepath.Join(w.dir, "log")
	hook := func(name string) string {
		return w.script(name, `echo "`+name+` $QBACKUP_MACHINE ${QBACKUP_STATUS-unset} ${#QBACKUP_POINT}" >> `+log)
	}
	e := fleet.New(w.o).Backup(t.Context(), w.hooked(fleet.Hooks{Before: []string{hook("one"), hook("two")}, After: []string{hook("three")}}), new(agent.Stats))
	if e.Err != nil {
		t.Fatal(e.Err)
	}
	got, err := os.ReadFile(log)
	if want := "one a unset 0\ntwo a unset 0\nthree a ok 26\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAHookThatFailsIsAnErrorWithItsWords(t *testing.T) {
	w := newWorld(t)
	log := filepath.Join(w.dir, "log")
	after := w.script("after", "echo $QBACKUP_STATUS >> "+log)
	f := fleet.New(w.o)
	e := f.Backup(t.Context(), w.hooked(fleet.Hooks{Before: []string{w.script("before", "echo the database is gone; exit 4")}, After: []string{after}}), new(agent.Stats))
	if !errors.Is(e.Err, fleet.ErrHook) || !strings.Contains(e.Err.Error(), "before: exit status 4: the database is gone") || !e.Summary.Point.IsZero() {
		t.Errorf("before: %v, point %v", e.Err, e.Summary.Point)
	}
	if got, err := os.ReadFile(log); err != nil || string(got) != "failed\n" {
		t.Errorf("what was stopped was not started: %q, %v", got, err)
	}
	e = f.Backup(t.Context(), w.hooked(fleet.Hooks{After: []string{w.script("after", "exit 5"), "/no/such/hook"}}), new(agent.Stats))
	if !errors.Is(e.Err, fleet.ErrHook) || !errors.Is(e.Err, os.ErrNotExist) || e.Summary.Point.IsZero() || e.Status() != state.StatusFailed {
		t.Errorf("after: %v, point %v, %s", e.Err, e.Summary.Point, e.Status())
	}
	if got := f.Results().Machine("a"); got.Success.Run != e.Summary.Point || got.Attempt.Status != state.StatusFailed {
		t.Errorf("a complete point does not count because of a hook: %+v", got)
	}
}

func TestAHookThatHangsIsEndedWithAllThatItStarted(t *testing.T) {
	w := newWorld(t)
	pid := filepath.Join(w.dir, "pid")
	hook := w.script("hang", "trap '' TERM; sleep 600 & echo $! > "+pid+"; wait; wait")
	started := time.Now()
	e := fleet.New(w.o).Backup(t.Context(), w.hooked(fleet.Hooks{Before: []string{hook}, Timeout: 300 * time.Millisecond}), new(agent.Stats))
	if !errors.Is(e.Err, fleet.ErrHook) || !strings.Contains(e.Err.Error(), "did not end within 300ms") {
		t.Error(e.Err)
	}
	if took := time.Since(started); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	number, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(number)) + "/stat")
		if err != nil || strings.Contains(string(status), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the child still runs")
}
