package livetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/testtool"
)

// trial is a machine whose backups are disturbed.
type trial struct {
	*machine
	g      *guest
	random *rand.Rand
	usual  time.Duration // of a run that was left alone
	known  int           // points
}

// newTrial makes a machine with a guest that writes and a first point.
func newTrial(t *testing.T, seed uint64) *trial {
	t.Helper()
	needDaemon(t)
	return newTrialOn(newMachine(newHost(t), "vm", trialSizes()...), seed)
}

func trialSizes() []int64 { return []int64{6 * mib, 8 * mib} }

func newTrialOn(m *machine, seed uint64) *trial {
	t, sizes := m.h.t, trialSizes()
	t.Helper()
	x := &trial{machine: m, g: newGuest(t, seed, 2, sizes...), random: rand.New(rand.NewPCG(seed, 1))}
	x.g.run(m)
	x.backupChecked(x.g)
	x.usual = duration(x.backupChecked(x.g))
	x.known = len(m.h.points("vm"))
	return x
}

func duration(s agent.Summary) time.Duration {
	return time.Duration(s.DurationSeconds * float64(time.Second))
}

// disturbed starts a run and does something at a random instant of it. It gives how
// the run ended.
func (x *trial) disturbed(what func(run *exec.Cmd)) (code int, stderr string) {
	t := x.h.t
	t.Helper()
	run := x.h.command("backup", "--qmp", x.monitor(), "--machine", x.name)
	var problems bytes.Buffer
	run.Stderr = &problems
	begun := time.Now()
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Duration(x.random.Int64N(int64(x.usual))))
	what(run)
	_ = run.Wait()
	x.checkNew(begun)
	return run.ProcessState.ExitCode(), problems.String()
}

// checkNew checks the points that a disturbed run has made.
func (x *trial) checkNew(begun time.Time) {
	all := x.h.points(x.name)
	for _, p := range all[x.known:] {
		x.check(x.g, p, begun, time.Now())
	}
	x.known = len(all)
}

// after makes the next run, which must succeed by itself, and demands that it says
// one of words of each disk.
func (x *trial) after(what string, words ...string) {
	t := x.h.t
	t.Helper()
	s := x.backupChecked(x.g)
	x.usual = duration(s)
	x.known++
	for _, d := range s.Disks {
		says := strings.TrimSpace(d.Mode + " " + string(d.Reason))
		good := false
		for _, w := range words {
			good = good || strings.HasPrefix(says, w)
		}
		if !good {
			t.Errorf("%s: the next run says of %s: %s: %s", what, d.Name, says, d.Detail)
		}
	}
	for _, a := range s.Alarms {
		t.Errorf("%s: alarm %s: %s", what, a.Kind, a.Text)
	}
	x.checkTidy()
}

// restart starts the machine again after its end. What a crash of QEMU left of the
// last writes is its own affair; from now on the disks are what they are.
func (x *trial) restart() {
	x.start()
	x.g.adopt(x.machine)
	x.g.run(x.machine)
}

func TestAKilledBackupLeavesNothingBehind(t *testing.T) {
	x := newTrial(t, 41)
	defer x.g.halt()
	killed := 0
	count := testtool.Count(6, 120)
	for n := range count {
		code, _ := x.disturbed(func(run *exec.Cmd) { _ = run.Process.Signal(syscall.SIGKILL) })
		if code == -1 {
			killed++
		}
		x.after(fmt.Sprintf("kill %d", n), "incremental")
	}
	t.Logf("%d of %d runs were killed", killed, count)
	x.h.ok("verify", "--data")
}

func TestAfterACrashOfQEMUDisksAreComparedByHash(t *testing.T) {
	x := newTrial(t, 42)
	defer func() { x.g.halt() }()
	for n := range testtool.Count(3, 60) {
		x.g.expectEnd()
		code, stderr := x.disturbed(func(*exec.Cmd) { x.kill() })
		x.g.wait()
		if code != 0 && code != 20 {
			t.Errorf("crash %d: exit %d: %s", n, code, stderr)
		}
		x.restart()
		// A bitmap that began in this life of QEMU was never in the file.
		x.after(fmt.Sprintf("crash %d", n), "rescan bitmap in use after a crash", "rescan no bitmap", "rescan only bitmaps of failed runs")
	}
}

func TestAfterTheDeathOfBothTheNextRunSucceedsByItself(t *testing.T) {
	x := newTrial(t, 43)
	defer func() { x.g.halt() }()
	for n := range testtool.Count(2, 40) {
		x.g.expectEnd()
		x.disturbed(func(run *exec.Cmd) {
			_ = run.Process.Signal(syscall.SIGKILL)
			x.kill()
		})
		x.g.wait()
		x.restart()
		x.after(fmt.Sprintf("death %d", n), "rescan bitmap in use after a crash", "rescan no bitmap", "rescan only bitmaps of failed runs")
	}
}

func TestAShutdownDuringABackupKeepsTheMachineIncremental(t *testing.T) {
	x := newTrial(t, 44)
	defer func() { x.g.halt() }()
	offline := append([]string{"--machine", "vm"}, x.images...)
	for n := range testtool.Count(3, 40) {
		x.g.expectEnd()
		x.g.wait() // a guest that shuts down writes no more
		code, stderr := x.disturbed(func(*exec.Cmd) { x.stop() })
		if code != 0 && code != 20 {
			t.Errorf("shutdown %d: exit %d: %s", n, code, stderr)
		}
		if n%2 == 0 {
			// On Tuesday the machine is off.
			begun := time.Now()
			s := x.h.backup(offline...)
			x.check(x.g, s.Point, begun, time.Now())
			x.known++
			if modes(s) != "incremental" || s.Consistency != "offline" {
				t.Errorf("shutdown %d: the machine that is off: %s, %s", n, modes(s), s.Consistency)
			}
			for _, image := range x.images {
				testtool.Run(t, "qemu-img", "check", "-q", image)
			}
		}
		x.restart()
		x.after(fmt.Sprintf("shutdown %d", n), "incremental")
	}
}

func TestAnInterruptedBackupTakesItsCutDown(t *testing.T) {
	x := newTrial(t, 45)
	defer x.g.halt()
	for n := range testtool.Count(2, 20) {
		code, stderr := x.disturbed(func(run *exec.Cmd) { _ = run.Process.Signal(syscall.SIGTERM) })
		// A signal that comes before the program listens to any ends it with nothing begun.
		early := code == -1 && stderr == ""
		if code != 0 && code != 130 && !early {
			t.Errorf("interrupt %d: exit %d: %s", n, code, stderr)
		}
		x.checkTidy()
		x.after(fmt.Sprintf("interrupt %d", n), "incremental")
	}
}

func TestARescanReadsWhatIsAllocatedAndStoresWhatDiffers(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	m := newMachine(h, "vm", 64*mib)
	m.rewrite(0, 16*mib, 1)
	args := []string{"--qmp", m.monitor(), "--machine", "vm"}
	h.backup(args...)
	if err := m.flush(0); err != nil {
		t.Fatal(err)
	}
	m.kill() // and with it the bitmaps
	m.start()
	if _, err := m.files[0].WriteAt(make([]byte, 64<<10), 1*mib); err != nil {
		t.Fatal(err)
	}
	s := h.backup(args...)
	if d := s.Disks[0]; d.Mode != "rescan" || d.ReadBytes > 16*mib || d.StoredBytes > 64<<10 || d.ZeroBytes < 48*mib {
		t.Errorf("%+v", d)
	}
	if s = h.backup(args...); modes(s) != "incremental" {
		t.Errorf("afterwards: %s", modes(s))
	}
}
