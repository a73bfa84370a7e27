package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// roleVariable makes the test's own program play a part.
const roleVariable = "QBACKUP_GUARD_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		goleak.VerifyTestMain(m)
	case "guard":
		playGuard()
	case "parent":
		playParent()
	}
}

// playGuard is what the hidden command of the program does. Its cleanup writes a line
// into the file that the spec names.
func playGuard() {
	err := Serve(context.Background(), os.Stdin, os.Stdout, Hooks{
		Cleanup: func(_ context.Context, raw json.RawMessage) error {
			var c testCleanup
			if err := json.Unmarshal(raw, &c); err != nil {
				return err
			}
			f, err := os.OpenFile(c.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = fmt.Fprintln(f, "cleaned up")
			if c.Fail {
				return fmt.Errorf("cannot clean up")
			}
			return err
		},
		Tell: func(line string) {
			if os.Getenv("QBACKUP_GUARD_TEST_TELL") != "" {
				fmt.Fprintln(os.Stderr, "guard:", line)
			}
		},
	})
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

type testCleanup struct {
	File string
	Fail bool
}

// machine is a guest agent that freezes nothing, and keeps the books.
type machine struct {
	t    testing.TB
	path string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]struct{}
	serving  sync.WaitGroup
	frozen   int
	since    time.Time
	longest  time.Duration
	heard    map[string]int
	// before is called with each command; what it returns is said in place of the
	// answer, unless it is "".
	before func(command string, conn net.Conn) string
}

const fileSystems = 3

// newMachine starts an agent; before may be nil.
func newMachine(t testing.TB, before func(command string, conn net.Conn) string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "guard") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, path: filepath.Join(dir, "ga"), conns: map[net.Conn]struct{}{}, heard: map[string]int{}, before: before}
	m.on()
	t.Cleanup(func() {
		m.off()
		os.RemoveAll(dir)
	})
	return m
}

// on makes the agent listen.
func (m *machine) on() {
	l, err := net.Listen("unix", m.path)
	if err != nil {
		m.t.Fatal(err)
	}
	m.listener = l
	m.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			m.mu.Lock()
			m.conns[conn] = struct{}{}
			m.mu.Unlock()
			m.serving.Go(func() { m.serve(conn) })
		}
	})
}

// off is the end of the machine: nobody listens, and nothing is frozen.
func (m *machine) off() {
	m.listener.Close()
	m.mu.Lock()
	for conn := range m.conns {
		conn.Close()
	}
	m.set(0)
	m.mu.Unlock()
	m.serving.Wait()
}

func (m *machine) set(frozen int) {
	if m.frozen == 0 && frozen > 0 {
		m.since = time.Now()
	}
	if m.frozen > 0 && frozen == 0 {
		m.longest = max(m.longest, time.Since(m.since))
	}
	m.frozen = frozen
}

func (m *machine) state() (frozen int, longest time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.frozen, m.longest
}

func (m *machine) count(command string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard[command]
}

func (m *machine) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		m.mu.Lock()
		delete(m.conns, conn)
		m.mu.Unlock()
	}()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		var h struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "\xff")), &h); err != nil {
			m.t.Errorf("the agent heard %q", line)
			return
		}
		m.mu.Lock()
		m.heard[h.Execute]++
		m.mu.Unlock()
		say := ""
		if m.before != nil {
			say = m.before(h.Execute, conn)
		}
		if say == "" {
			say = m.answer(h.Execute, h.Arguments.ID)
		}
		if _, err := conn.Write([]byte(say)); err != nil {
			return
		}
	}
}

func (m *machine) answer(command string, id int64) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch command {
	case "guest-sync-delimited":
		return fmt.Sprintf("\xff"+`{"return": %d}`+"\n", id)
	case "guest-fsfreeze-freeze":
		if m.frozen > 0 {
			return `{"error": {"class": "CommandNotFound", "desc": "the agent is frozen"}}` + "\n"
		}
		m.set(fileSystems)
		return fmt.Sprintf(`{"return": %d}`+"\n", fileSystems)
	case "guest-fsfreeze-thaw":
		was := m.frozen
		m.set(0)
		return fmt.Sprintf(`{"return": %d}`+"\n", was)
	}
	return `{"return": {}}` + "\n"
}

// world is what a guard works on: an agent, a file that stands for a suspended machine,
// and a folder of markers.
type world struct {
	t         testing.TB
	machine   *machine
	dir       string
	suspended string
	cleanups  string
	spec      Spec
}

func newWorld(t testing.TB, before func(string, net.Conn) string) *world {
	t.Helper()
	w := &world{t: t, machine: newMachine(t, before), dir: t.TempDir()}
	w.suspended, w.cleanups = filepath.Join(w.dir, "suspended"), filepath.Join(w.dir, "cleanups")
	cleanup, err := json.Marshal(testCleanup{File: w.cleanups})
	if err != nil {
		t.Fatal(err)
	}
	w.spec = Spec{
		Folder: filepath.Join(w.dir, "state", "guard"), ID: "run-1", Cleanup: cleanup, Persist: 20 * time.Second,
		Actions: map[string]Action{
			"freeze":  {Agent: w.machine.path},
			"suspend": {Exec: &Exec{Do: []string{"touch", w.suspended}, Undo: []string{"rm", "-f", w.suspended}}},
		},
	}
	return w
}

// self is the argv of a guard.
func self(t testing.TB) []string {
	t.Helper()
	t.Setenv(roleVariable, "guard")
	return []string{"/proc/self/exe"}
}

func (w *world) start() *Guard {
	w.t.Helper()
	g, err := Start(w.t.Context(), self(w.t), w.spec)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = g.stdin.Close()
		<-g.dead
	})
	return g
}

func (w *world) hold(g *Guard, name string, budget time.Duration) Held {
	w.t.Helper()
	h, err := g.Hold(w.t.Context(), name, budget)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (w *world) release(g *Guard, name string) Released {
	w.t.Helper()
	r, err := g.Release(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) done(g *Guard) {
	w.t.Helper()
	if err := g.Done(); err != nil {
		w.t.Error(err)
	}
	w.nothingIsLeft()
}

// markers are the names of the files in the folder.
func (w *world) markers() []string {
	w.t.Helper()
	return slices.DeleteFunc(w.allMarkers(), func(name string) bool { return strings.HasSuffix(name, "-"+NameCleanup+markerSuffix) })
}

// allMarkers are those of cleanups, too, which are there while a guard lives.
func (w *world) allMarkers() []string {
	w.t.Helper()
	entries, err := os.ReadDir(w.spec.Folder)
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (w *world) isSuspended() bool {
	_, err := os.Stat(w.suspended)
	return err == nil
}

func (w *world) cleanedUp() int {
	text, err := os.ReadFile(w.cleanups)
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

func (w *world) nothingIsLeft() {
	w.t.Helper()
	if frozen, _ := w.machine.state(); frozen > 0 {
		w.t.Error("the guest is frozen")
	}
	if w.isSuspended() {
		w.t.Error("the machine is suspended")
	}
	if left := w.markers(); len(left) > 0 {
		w.t.Errorf("markers are left: %v", left)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for started := time.Now(); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Since(started) > 30*time.Second {
			t.Fatalf("after 30 s not: %s", what)
		}
	}
}

// alive tells whether a process runs; one that only waits to be reaped does not.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func signalTo(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}
