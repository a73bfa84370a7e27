package nbd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// serve runs a server until the test ends, and comes back when it listens.
func serve(t testing.TB, at Address, program string, args ...string) *exec.Cmd {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(testtool.Need(t, program), args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		select {
		case <-ended:
			t.Fatalf("%s has ended: %s", program, said.Bytes())
		default:
		}
		if c, err := net.Dial(at.Network, at.Address); err == nil {
			c.Close()
			return cmd
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen at %s", program, at)
		}
	}
}

// qemuNBD exports an image with qemu-nbd on a unix socket.
func qemuNBD(t testing.TB, args ...string) Address {
	t.Helper()
	at := Address{Network: "unix", Address: filepath.Join(folder(t), "s")}
	serve(t, at, "qemu-nbd", append([]string{"-k", at.Address, "-t", "-e", "16"}, args...)...)
	return at
}

// uri is the address as nbdinfo and nbdcopy take it.
func (a Address) uri(export string) string {
	if a.Network == "unix" {
		return fmt.Sprintf("nbd+unix:///%s?socket=%s", export, a.Address)
	}
	return fmt.Sprintf("nbd://%s/%s", a.Address, export)
}

// nbdkit serves a plugin on a unix socket.
func nbdkit(t testing.TB, args ...string) Address {
	t.Helper()
	at := Address{Network: "unix", Address: filepath.Join(folder(t), "s")}
	serve(t, at, "nbdkit", append([]string{"-f", "-U", at.Address}, args...)...)
	return at
}

// freePort is a port of TCP that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// mustDial connects to a real server.
func mustDial(t testing.TB, at Address, o Options) *Client {
	t.Helper()
	c, err := Dial(t.Context(), at, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// guestImage is an image that a guest has worked on, with bitmap b of everything
// after the first half of the work.
func guestImage(t testing.TB, seed uint64, size int64, granularity int) string {
	t.Helper()
	path := filepath.Join(folder(t), "d.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(size))
	work(t, seed, path, size)
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", fmt.Sprint(granularity), path, "b")
	work(t, seed+1, path, size)
	return path
}

// work writes, zeroes and discards at random.
func work(t testing.TB, seed uint64, path string, size int64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 9))
	args := []string{"-f", "qcow2", "-d", "unmap", "-t", "unsafe"}
	for range 40 {
		off := r.Int64N(size/512) * 512
		n := min(size-off, 512+r.Int64N(512)*512)
		verb := []string{fmt.Sprintf("write -q -P %d", 1+r.IntN(255)), "write -q -z", "write -q -z -u", "discard -q"}[r.IntN(4)]
		args = append(args, "-c", fmt.Sprintf("%s %d %d", verb, off, n))
	}
	if out := testtool.Run(t, "qemu-io", append(args, path)...); out != "" {
		t.Fatalf("qemu-io: %s", out)
	}
}

// nbdinfoMap is what libnbd says of a context.
func nbdinfoMap(t testing.TB, uri, context string) []StatusExtent {
	t.Helper()
	var listed []struct {
		Offset, Length int64
		Type           uint32
	}
	out := testtool.Run(t, "nbdinfo", "--json", "--map="+context, uri)
	if err := json.Unmarshal([]byte(out), &listed); err != nil {
		t.Fatalf("nbdinfo: %v in %s", err, out)
	}
	var all []StatusExtent
	for _, e := range listed {
		if last := len(all) - 1; last >= 0 && all[last].Flags == e.Type {
			all[last].Len += e.Length // of two of its requests
			continue
		}
		all = append(all, StatusExtent{Off: e.Offset, Len: e.Length, Flags: e.Type})
	}
	return all
}
