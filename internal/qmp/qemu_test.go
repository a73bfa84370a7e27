package qmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// program starts a program in a new folder and waits until somebody listens at the
// sockets, named relative to it. kill ends it at once.
func program(t testing.TB, sockets []string, name string, args ...string) (dir string, kill func()) {
	t.Helper()
	dir = filepath.Dir(socketPath(t))
	cmd := exec.Command(testtool.Need(t, name), args...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	t.Cleanup(kill)
	for _, socket := range sockets {
		path := filepath.Join(dir, socket)
		for started := time.Now(); ; {
			if conn, err := net.Dial("unix", path); err == nil {
				conn.Close()
				break
			}
			select {
			case err := <-ended:
				ended <- err
				t.Fatalf("%s ended: %v\n%s", name, err, out.String())
			case <-time.After(5 * time.Millisecond):
			}
			if time.Since(started) > 30*time.Second {
				t.Fatalf("%s made no socket %s", name, socket)
			}
		}
	}
	return dir, kill
}

// qemu starts a machine that stands still and has three monitors: a, b, and c, which
// spreads its words over lines.
func qemu(t testing.TB, more ...string) (dir string, kill func()) {
	t.Helper()
	args := []string{"-display", "none", "-nodefaults", "-accel", "tcg", "-S"}
	for _, m := range []string{"a", "b", "c"} {
		pretty := "off"
		if m == "c" {
			pretty = "on"
		}
		args = append(args, "-chardev", "socket,id="+m+",path="+m+",server=on,wait=off", "-mon", "mode=control,chardev="+m+",pretty="+pretty)
	}
	return program(t, []string{"a", "b", "c"}, "qemu-system-x86_64", append(args, more...)...)
}

// storageDaemon starts one with the monitor "a" and an NBD server "nbd".
func storageDaemon(t testing.TB) (dir string, kill func()) {
	t.Helper()
	return program(t, []string{"a", "nbd"}, "qemu-storage-daemon",
		"--blockdev", "driver=null-co,node-name=n0,size=1048576,read-zeroes=on",
		"--chardev", "socket,id=m,path=a,server=on,wait=off", "--monitor", "chardev=m",
		"--nbd-server", "addr.type=unix,addr.path=nbd")
}

func TestQEMUAnswers(t *testing.T) {
	dir, kill := qemu(t, "-machine", "none")
	a, c := dial(t, filepath.Join(dir, "a"), Options{}), dial(t, filepath.Join(dir, "c"), Options{})
	var answer struct {
		QEMU    Version
		Package string
	}
	if err := c.Execute(t.Context(), "query-version", nil, &answer); err != nil {
		t.Fatal(err)
	}
	answer.QEMU.Package = answer.Package
	if a.Version() != answer.QEMU || a.Version().Major < 4 {
		t.Errorf("greeted as %v, is %v", a.Version(), answer.QEMU)
	}
	var refused *Error
	if err := a.Execute(t.Context(), "no-such", nil, nil); !errors.As(err, &refused) || refused.Class != ClassCommandNotFound {
		t.Errorf("%v", err)
	}
	arguments := map[string]any{"device": "no such \" \n \u2028 <node>", "flag": 1}
	if err := a.Execute(t.Context(), "block-job-cancel", map[string]any{"device": "none"}, nil); !errors.As(err, &refused) || refused.Class != ClassDeviceNotActive {
		t.Errorf("%v", err)
	}
	if err := a.Execute(t.Context(), "block-job-cancel", arguments, nil); !errors.As(err, &refused) || refused.Class != ClassGeneric {
		t.Errorf("%v", err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range testtool.Count(50, 1000) {
				var status struct{ Running bool }
				if err := a.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Running {
					t.Errorf("%v, %v", status, err)
				}
			}
		})
	}
	all.Wait()

	kill()
	<-a.Lost()
	if err := a.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, ErrLost) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := Dial(t.Context(), filepath.Join(dir, "b"), Options{}); !errors.Is(err, ErrNobody) {
		t.Errorf("a dead QEMU: %v", err)
	}
}

func TestAMonitorServesOneClientAtATime(t *testing.T) {
	dir, _ := qemu(t, "-machine", "none")
	path := filepath.Join(dir, "a")
	first := dial(t, path, Options{})
	quick := Options{Greeting: 200 * time.Millisecond}
	// QEMU's queue holds two more; whoever comes then is turned away by the system.
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			err := soon(t, "Dial", func() error { _, err := Dial(t.Context(), path, quick); return err })
			if !errors.Is(err, ErrTaken) {
				t.Errorf("the monitor is taken: %v", err)
			}
		})
	}
	all.Wait()
	second := dial(t, filepath.Join(dir, "b"), quick) // another monitor is free
	if err := second.Execute(t.Context(), "query-status", nil, nil); err != nil {
		t.Error(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { first.Close() })
	for range 3 { // as each of them goes, the next is let in
		all.Go(func() {
			m, err := Dial(t.Context(), path, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			if err := m.Execute(t.Context(), "query-status", nil, nil); err != nil {
				t.Error(err)
			}
			m.Close()
		})
	}
	all.Wait()
}

func TestEventsOfQEMU(t *testing.T) {
	dir, _ := qemu(t, "-machine", "pc")
	m := dial(t, filepath.Join(dir, "c"), Options{})
	s := m.Subscribe("RESUME", "STOP")
	defer s.Close()
	before := time.Now()
	for _, want := range []string{"RESUME", "STOP"} {
		command := map[string]string{"RESUME": "cont", "STOP": "stop"}[want]
		if err := m.Execute(t.Context(), command, nil, nil); err != nil {
			t.Fatal(err)
		}
		e, err := s.Next(t.Context())
		if err != nil || e.Name != want || e.Time.Before(before.Add(-time.Minute)) || e.Time.After(time.Now().Add(time.Minute)) {
			t.Errorf("%v, %v; want %s", e, err, want)
		}
	}
}

func TestOtherSocketsAreNoMonitors(t *testing.T) {
	dir, _ := program(t, []string{"hmp"}, "qemu-system-x86_64", "-display", "none", "-nodefaults", "-machine", "none", "-accel", "tcg", "-S",
		"-chardev", "socket,id=h,path=hmp,server=on,wait=off", "-mon", "mode=readline,chardev=h")
	if _, err := Dial(t.Context(), filepath.Join(dir, "hmp"), Options{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("a monitor for people: %v", err)
	}
	dir, _ = storageDaemon(t)
	if _, err := Dial(t.Context(), filepath.Join(dir, "nbd"), Options{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("an NBD server: %v", err)
	}
}

func TestTheUserOfQEMU(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, _ := qemu(t, "-machine", "none", "-runas", "65534:65534")
	m := dial(t, filepath.Join(dir, "a"), Options{})
	// QEMU greets while it still starts.
	for started := time.Now(); m.PeerUID() != 65534; time.Sleep(5 * time.Millisecond) {
		if time.Since(started) > 10*time.Second {
			t.Fatalf("user %d, want 65534", m.PeerUID())
		}
	}
}

func TestWhatQEMUCanDo(t *testing.T) {
	dirQEMU, _ := qemu(t, "-machine", "none")
	dirDaemon, _ := storageDaemon(t)
	for name, m := range map[string]*Monitor{
		"qemu": dial(t, filepath.Join(dirQEMU, "c"), Options{}), "daemon": dial(t, filepath.Join(dirDaemon, "a"), Options{}),
	} {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if _, err := m.Schema(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		s, err := m.Schema(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m.last != 2 {
			t.Errorf("%s was asked %d times", name, m.last-1)
		}
		for _, c := range []struct {
			what string
			got  bool
			want bool
		}{
			{"command", s.Command("block-dirty-bitmap-merge"), true},
			{"command of the emulator", s.Command("qom-set") && s.Command("human-monitor-command"), name == "qemu"},
			{"no command", s.Command("no-such") || s.Command("str") || s.Command("") || s.Command("BLOCK_JOB_COMPLETED"), false},
			{"argument", s.Argument("blockdev-backup", "x-perf") && s.Argument("blockdev-backup", "job-id"), true},
			{"argument of a branch", s.Argument("block-export-add", "bitmaps") && s.Argument("block-export-add", "id"), true},
			{"argument in an argument", s.Argument("blockdev-backup", "x-perf/max-workers"), true},
			{"argument below a branch of a list", s.Argument("transaction", "actions/data/bitmap-mode"), true},
			{"argument through an alternative", s.Argument("blockdev-add", "file/file/filename"), true},
			{"no argument", s.Argument("blockdev-backup", "no-such") || s.Argument("no-such", "id") || s.Argument("blockdev-backup", "") ||
				s.Argument("blockdev-backup", "job-id/x") || s.Argument("query-block", "x"), false},
			{"value of a union", s.Value("transaction", "actions/type", "block-dirty-bitmap-merge") && s.Value("transaction", "actions/type", "blockdev-backup"), true},
			{"driver", s.Value("blockdev-add", "driver", "throttle") && s.Value("blockdev-add", "driver", "copy-before-write"), true},
			{"value of an enumeration", s.Value("blockdev-backup", "sync", "none"), true},
			{"no value", s.Value("blockdev-add", "driver", "no-such") || s.Value("blockdev-add", "node-name", "x") ||
				s.Value("transaction", "actions", "abort") || s.Value("no-such", "driver", "file"), false},
		} {
			if c.got != c.want {
				t.Errorf("%s: %s: %v", name, c.what, c.got)
			}
		}
	}
}

// Clients leave with commands under way, which QEMU executes later, and answers to the
// next client.
func TestManyClientsComeAndGo(t *testing.T) {
	for _, name := range []string{"qemu-storage-daemon", "qemu-system-x86_64"} {
		t.Run(name, func(t *testing.T) {
			var dir string
			if name == "qemu-storage-daemon" {
				dir, _ = storageDaemon(t)
			} else {
				dir, _ = qemu(t, "-machine", "none")
			}
			random := rand.New(rand.NewPCG(3, 1))
			for n := range testtool.Count(60, 1000) {
				comeAndGo(t, filepath.Join(dir, "a"), n, random)
			}
		})
	}
}

func comeAndGo(t *testing.T, path string, n int, random *rand.Rand) {
	t.Helper()
	m, err := Dial(t.Context(), path, Options{})
	if err != nil {
		t.Fatalf("client %d: %v", n, err)
	}
	var version struct{ QEMU Version }
	if err := m.Execute(t.Context(), "query-version", nil, &version); err != nil || version.QEMU.Major < 4 {
		t.Errorf("client %d: %v, %v", n, version, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(4000))*time.Microsecond)
	defer cancel()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			arguments := map[string]any{"driver": "null-co", "node-name": fmt.Sprintf("x%d-%d", n, i)}
			err := m.Execute(ctx, "blockdev-add", arguments, nil)
			if err == nil {
				_, err = m.Schema(ctx)
			}
			if err != nil && !errors.Is(err, ErrSilent) && !errors.Is(err, ErrLost) && !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	if n%2 == 0 {
		all.Wait()
	}
	m.Close()
	all.Wait()
}
