package qmp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testGreeting = `{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}, "package": "v9.2.1"}, "capabilities": ["oob"]}}` + "\r\n"

// socketPath gives a path that is short enough for a socket.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// client is one connection to the fake server, from the server's side.
type client struct {
	t testing.TB
	net.Conn
	lines *bufio.Reader
}

// serve listens, and runs handle for each client in a goroutine, which ends when the
// client goes or the test is over.
func serve(t testing.TB, handle func(*client)) (path string) {
	t.Helper()
	path = socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			all.Go(func() {
				defer conn.Close()
				handle(&client{t, conn, bufio.NewReader(conn)})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return path
}

// say sends text; a client that is gone is no failure.
func (p *client) say(format string, args ...any) {
	_, _ = fmt.Fprintf(p, format, args...)
}

type heard struct {
	Execute   string
	Arguments json.RawMessage
	ID        string
}

// hear waits for a command; false when the client is gone.
func (p *client) hear() (heard, bool) {
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return heard{}, false
	}
	var h heard
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "\xff")), &h); err != nil {
		p.t.Errorf("the client sent %q: %v", line, err)
		return heard{}, false
	}
	return h, true
}

// greet is the beginning of every session.
func (p *client) greet() bool {
	p.say("%s", testGreeting)
	h, ok := p.hear()
	if ok && h.Execute != "qmp_capabilities" {
		p.t.Errorf("the first command is %s", h.Execute)
	}
	p.say(`{"return": {}, "id": %q}`+"\r\n", h.ID)
	return ok
}

// untilGone reads and forgets.
func (p *client) untilGone() {
	for {
		if _, ok := p.hear(); !ok {
			return
		}
	}
}

func dial(t testing.TB, path string, o Options) *Monitor {
	t.Helper()
	m, err := Dial(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// soon wants f to return before the longest of the defaults; what it returns is handed on.
func soon(t testing.TB, what string, f func() error) error {
	t.Helper()
	started := time.Now()
	err := f()
	if took := time.Since(started); took > 8*time.Second {
		t.Errorf("%s took %v", what, took)
	}
	return err
}
