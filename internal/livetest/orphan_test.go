package livetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/testtool"
)

// childOf gives the process that another one has started.
func childOf(t *testing.T, parent int) int {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == fmt.Sprint(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("there is no guard")
	return 0
}

// Nobody watches the scratch space of a backup that died together with its guard. The
// machine may never be backed up again, so any later start of the program helps.
func TestAfterTheDeathOfBackupAndGuardAnyStartTakesDownWhatIsLeft(t *testing.T) {
	testtool.Need(t, "qemu-img")
	h := newHost(t)
	m := newEmulator(h, "web1", 64<<20)
	h.backup("--qmp", m.monitor(), "--machine", "web1")
	jobs := func() (n int) {
		m.ask(func(ctx context.Context, q *qmp.Monitor) {
			var list []struct{ ID string }
			m.must(q.Execute(ctx, "query-jobs", nil, &list))
			n = len(list)
		})
		return n
	}
	run := h.command("backup", "--rescan", "--qmp", m.monitor(), "--machine", "web1")
	if err := m.qemuIO(0, "write -P 7 0 64M"); err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	for jobs() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond) // so that answers are under way that nobody will read
	guard := childOf(t, run.Process.Pid)
	for _, s := range []struct {
		pid    int
		signal syscall.Signal
	}{{run.Process.Pid, syscall.SIGSTOP}, {guard, syscall.SIGKILL}, {run.Process.Pid, syscall.SIGKILL}} {
		if err := syscall.Kill(s.pid, s.signal); err != nil {
			t.Fatal(err)
		}
	}
	_ = run.Wait()
	if jobs() == 0 {
		t.Fatal("the backup was over; nothing is proved")
	}
	_, stderr, code := h.run("thaw")
	for n := 0; n < 100 && code == 0 && stderr == ""; n++ { // the guard's lock ends a moment after it
		time.Sleep(20 * time.Millisecond)
		_, stderr, code = h.run("thaw")
	}
	if code != 0 || !strings.Contains(stderr, "took down what a backup") {
		t.Errorf("thaw: exit %d, %s", code, stderr)
	}
	if n := jobs(); n > 0 {
		t.Errorf("%d jobs are left", n)
	}
	if out := h.ok("thaw"); !strings.Contains(out, "nothing is") {
		t.Errorf("thaw again: %s", out)
	}
	h.backup("--qmp", m.monitor(), "--machine", "web1")
	m.checkTidy()
}
