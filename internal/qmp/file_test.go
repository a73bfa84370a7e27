package qmp

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ends makes two ends of a socket, both as files.
func ends(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// closed tells whether the other end of a socket is gone.
func closed(t *testing.T, f *os.File) bool {
	t.Helper()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	if err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == io.EOF
}

func TestQEMUKeepsAFileThatItWasPassed(t *testing.T) {
	dir, _ := qemu(t, "-machine", "none")
	path := filepath.Join(dir, "a")
	m := dial(t, path, Options{})
	mine, other := ends(t)
	if err := m.PassFile(t.Context(), "end", mine); err != nil {
		t.Fatal(err)
	}
	// Ours is closed, and so is the monitor; QEMU still has it.
	mine.Close()
	m.Close()
	if closed(t, other) {
		t.Error("the socket ended with us")
	}
	m = dial(t, path, Options{})
	if err := m.CloseFile(t.Context(), "end"); err != nil {
		t.Fatal(err)
	}
	if !closed(t, other) {
		t.Error("QEMU did not close it")
	}
	var refused *Error
	if err := m.CloseFile(t.Context(), "end"); !errors.As(err, &refused) {
		t.Errorf("a file that QEMU has not: %v", err)
	}
	gone, _ := ends(t)
	gone.Close()
	if err := m.PassFile(t.Context(), "end", gone); !errors.Is(err, ErrLost) {
		t.Errorf("a closed file: %v", err)
	}
}
