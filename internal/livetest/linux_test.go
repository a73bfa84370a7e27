package livetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/linuxguest"
	"github.com/qbackup/qbackup/internal/testtool"
)

// linux is a real guest, whose disks are file systems that it writes to.
type linux struct {
	h     *host
	g     *linuxguest.Guest
	disks []string // images
	names []string
}

func newLinux(t *testing.T, disks int) *linux {
	t.Helper()
	testtool.Need(t, "qemu-system-x86_64")
	l := &linux{h: newHost(t)}
	for i := range disks {
		name := fmt.Sprintf("fs%d", i)
		path := l.h.path(name + ".qcow2")
		linuxguest.MakeDisk(t, path, 64*mib)
		l.disks, l.names = append(l.disks, path), append(l.names, name)
	}
	l.start(t)
	return l
}

func (l *linux) start(t *testing.T) {
	t.Helper()
	l.g = linuxguest.Start(t, linuxguest.Config{Disks: l.disks})
	l.g.WaitReady(t)
	for i := range l.disks {
		l.g.WaitAnnounced(t, i, 1)
	}
}

func (l *linux) args(freeze string) []string {
	return []string{"--qmp", l.g.Monitor, "--machine", "linux", "--guest-agent", l.g.Agent, "--freeze", freeze}
}

// backup makes a point, restores it, and lets the file systems be checked: all that the
// guest had announced before must be there.
func (l *linux) backup(t *testing.T, freeze string) agent.Summary {
	t.Helper()
	var before, after []int
	for i := range l.disks {
		before = append(before, l.g.Announced(t, i))
	}
	s := l.h.backup(l.args(freeze)...)
	for i := range l.disks {
		after = append(after, l.g.Announced(t, i))
	}
	if want := map[string]string{"off": "crash", "require": "frozen"}[freeze]; s.Consistency != want {
		t.Errorf("--freeze %s: the point is %s", freeze, s.Consistency)
	}
	for i, name := range l.names {
		raw := l.h.path("restored.raw")
		l.h.ok("restore", "--machine", "linux", "--disk", name, "--to", raw, "--force")
		if c := linuxguest.CheckDisk(t, raw, freeze == "require"); c.Newest < before[i] || c.Newest > after[i]+1 {
			t.Errorf("disk %s has the files up to %d; %d were announced before the backup, %d after it", name, c.Newest, before[i], after[i])
		}
	}
	return s
}

func TestPointsOfARealGuestAreWholeFileSystems(t *testing.T) {
	l := newLinux(t, 2)
	l.backup(t, "off")
	var longest float64
	for n := range testtool.Count(4, 10) {
		freeze := "off"
		if n%2 == 1 {
			freeze = "require"
		}
		s := l.backup(t, freeze)
		if modes(s) != "incremental" {
			t.Errorf("run %d says %s", n, modes(s))
		}
		longest = max(longest, s.FreezeSeconds)
		for i := range l.disks {
			l.g.WaitAnnounced(t, i, l.g.Announced(t, i)+2)
		}
	}
	// On Tuesday it is off, on Wednesday it runs again.
	l.g.Stop(t)
	s := l.h.backup(append([]string{"--machine", "linux"}, l.disks...)...)
	if modes(s) != "incremental" {
		t.Errorf("off: %s", modes(s))
	}
	l.start(t)
	if s := l.backup(t, "require"); modes(s) != "incremental" {
		t.Errorf("running again: %s", modes(s))
	}
	l.g.Stop(t)
	t.Logf("the file systems were frozen for %.0f ms at most", 1000*longest)
}

func TestAGuestIsThawedWhateverDies(t *testing.T) {
	l := newLinux(t, 1)
	l.backup(t, "require")
	for n := range testtool.Count(3, 20) {
		run := l.h.command(append([]string{"backup"}, l.args("require")...)...)
		var problems bytes.Buffer
		run.Stderr = &problems
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+25*n) * time.Millisecond)
		_ = run.Process.Signal(syscall.SIGKILL)
		_ = run.Wait()
		// A guest that is frozen announces nothing.
		l.g.WaitAnnounced(t, 0, l.g.Announced(t, 0)+1)
		if s := l.backup(t, "require"); modes(s) != "incremental" {
			t.Errorf("kill %d: the next run says %s", n, modes(s))
		}
	}
	l.g.Stop(t)
}

func TestAnAgentThatDoesNotAnswerCostsAFrozenPointOnly(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	m := newMachine(h, "vm", 4*mib)
	agentSocket := h.path("agent")
	deaf := exec.Command(testtool.Need(t, "qemu-storage-daemon"), "--chardev", "socket,id=m,path="+agentSocket+",server=on,wait=off", "--monitor", "chardev=m")
	deaf.Stderr = os.Stderr
	if err := deaf.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = deaf.Process.Signal(syscall.SIGTERM)
		_ = deaf.Wait()
	}()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(agentSocket); err == nil {
			break
		}
	}
	args := []string{"backup", "--qmp", m.monitor(), "--machine", "vm", "--guest-agent", agentSocket, "--freeze-budget", "1s"}
	_, stderr, code := h.run(append(args, "--freeze", "require")...)
	if code == 0 || !strings.Contains(stderr, "freeze") {
		t.Errorf("require: exit %d: %s", code, stderr)
	}
	stdout, stderr, code := h.run(append(args, "--freeze", "try", "--json")...)
	if code != 0 || !strings.Contains(stderr, "not frozen") {
		t.Fatalf("try: exit %d: %s", code, stderr)
	}
	if s := h.summary(stdout); s.Consistency != "crash" {
		t.Errorf("try: the point is %s", s.Consistency)
	}
	m.checkTidy()
}
