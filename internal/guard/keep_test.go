package guard

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestAConnectionIsKeptUntilTheGuardEnds(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const connections = 150
	var servers []net.Conn
	for range connections {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
		if err := g.Keep(c); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range servers {
		if err := s.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("while the guard lives: %v", err)
		}
	}
	if err := syscall.Kill(g.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		if err := s.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("when the guard has ended: %v", err)
		}
		s.Close()
	}
	_ = g.Done()
}

func TestWhatHasNoDescriptorIsNotKept(t *testing.T) {
	w := newWorld(t, nil)
	g := w.start()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if err := g.Keep(a); err == nil {
		t.Error("a pipe in memory was kept")
	}
	if err := g.Done(); err != nil {
		t.Error(err)
	}
}

func TestAKeptConnectionIsReadDuringTheCleanUp(t *testing.T) {
	w := newWorld(t, nil)
	w.spec.Cleanup, _ = json.Marshal(testCleanup{File: w.cleanups, Fail: true})
	w.spec.Persist = 10 * time.Second
	g := w.start()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := errors.Join(g.Keep(c), c.Close()); err != nil {
		t.Fatal(err)
	}
	_ = s.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := s.Write(make([]byte, 4<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("somebody reads already: %d, %v", n, err)
	}
	g.Leave()
	_ = s.SetWriteDeadline(time.Now().Add(8 * time.Second))
	if _, err := s.Write(make([]byte, 4<<20)); err != nil {
		t.Errorf("nobody reads: %v", err)
	}
	<-g.dead
}
