package guard

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/testtool"
)

// startProgram starts a program that makes a socket "ga" in a new folder, and ends with the test.
func startProgram(t *testing.T, name string, args func(dir string) []string) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "guard")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testtool.Need(t, name), args(dir)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		os.RemoveAll(dir)
	})
	socket = filepath.Join(dir, "ga")
	eventually(t, "a socket", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return socket
}

// A real agent would freeze this host: it is told not to.
func TestARealAgentThatMayNotFreeze(t *testing.T) {
	w := newWorld(t, nil)
	socket := startProgram(t, "qemu-ga", func(dir string) []string {
		return []string{"--method", "unix-listen", "--path", filepath.Join(dir, "ga"), "--statedir", dir, "--pidfile", filepath.Join(dir, "pid"),
			"--block-rpcs", "guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-fsfreeze-thaw,guest-exec,guest-shutdown,guest-fstrim"}
	})
	w.spec.Actions["freeze"] = Action{Agent: socket}
	g := w.start()
	for range 3 {
		_, err := g.Hold(t.Context(), "freeze", 0)
		if !errors.Is(err, ErrNotHeld) || !strings.Contains(err.Error(), "disabled") {
			t.Errorf("%v", err)
		}
	}
	w.done(g)
}

func TestAMachineWithoutAnAgent(t *testing.T) {
	w := newWorld(t, nil)
	w.spec.Actions["freeze"] = Action{Agent: startProgram(t, "qemu-system-x86_64", func(dir string) []string {
		return []string{"-display", "none", "-nodefaults", "-machine", "pc", "-accel", "tcg", "-S",
			"-chardev", "socket,id=g,server=on,wait=off,path=" + filepath.Join(dir, "ga"),
			"-device", "virtio-serial", "-device", "virtserialport,chardev=g,name=org.qemu.guest_agent.0"}
	})}
	g := w.start()
	started := time.Now()
	_, err := g.Hold(t.Context(), "freeze", 300*time.Millisecond)
	if !errors.Is(err, ErrNotHeld) || !errors.Is(err, qmp.ErrAgent) {
		t.Errorf("%v", err)
	}
	w.done(g)
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestAProgramThatDoesEndsWithItsGuard(t *testing.T) {
	w := newWorld(t, nil)
	file := filepath.Join(w.dir, "pid")
	w.spec.Actions["slow"] = Action{Exec: &Exec{Do: []string{"sh", "-c", "echo $$ >" + file + "; exec sleep 1000"}, Undo: []string{"true"}}}
	g := w.start()
	failed := make(chan error, 1)
	go func() {
		_, err := g.Hold(t.Context(), "slow", time.Minute)
		failed <- err
	}()
	pid := 0
	eventually(t, "begun", func() bool {
		text, _ := os.ReadFile(file)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return pid > 0
	})
	signalTo(t, g.Pid(), syscall.SIGKILL)
	if err := <-failed; !errors.Is(err, ErrGuard) {
		t.Errorf("%v", err)
	}
	eventually(t, "ended", func() bool { return !alive(pid) })
	w.nothingIsLeft()
}
