package livetest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/testtool"
)

// machine is a running machine: qemu-storage-daemon with the images as its disks, to
// which a guest writes through files that it exports with FUSE. Or it is a whole
// emulator; see emulator.
type machine struct {
	h        *host
	name     string
	images   []string // paths
	disks    []string // names
	emulated bool
	runas    string // UID:GID that an emulator gives its rights up for; empty: it keeps them
	process  *exec.Cmd
	mounts   []string
	files    []*os.File   // what the guest writes to
	hands    *qmp.Monitor // what the guest of an emulator writes with
}

// newMachine makes empty disks and starts a machine with them.
func newMachine(h *host, name string, sizeBytes ...int64) *machine {
	h.t.Helper()
	m := &machine{h: h, name: name}
	m.makeDisks(sizeBytes)
	m.start()
	return m
}

func (m *machine) makeDisks(sizeBytes []int64) {
	h, name := m.h, m.name
	for i, size := range sizeBytes {
		disk := fmt.Sprintf("%s-%d", name, i)
		m.disks = append(m.disks, disk)
		m.images = append(m.images, h.path(disk+".qcow2"))
		testtool.Run(h.t, "qemu-img", "create", "-q", "-f", "qcow2", m.images[i], fmt.Sprint(size))
	}
}

// monitor is the socket for the program under test.
func (m *machine) monitor() string { return m.h.path(m.name + ".qmp") }

// spare is a second monitor, for the test itself.
func (m *machine) spare() string { return m.h.path(m.name + ".test") }

// start switches the machine on.
func (m *machine) start() {
	t := m.h.t
	t.Helper()
	if m.emulated {
		m.startEmulator()
		return
	}
	var args []string
	for i, socket := range []string{m.monitor(), m.spare()} {
		args = append(args, "--chardev", fmt.Sprintf("socket,id=m%d,path=%s,server=on,wait=off", i, socket), "--monitor", fmt.Sprintf("chardev=m%d", i))
	}
	m.mounts, m.files = nil, nil
	for i, image := range m.images {
		mount := m.h.path(fmt.Sprintf("%s-guest-%d", m.name, i))
		if err := os.WriteFile(mount, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		m.mounts = append(m.mounts, mount)
		args = append(args,
			"--blockdev", fmt.Sprintf("driver=qcow2,node-name=d%d,discard=unmap,file.driver=file,file.filename=%s", i, image),
			"--export", fmt.Sprintf("type=fuse,id=guest%d,node-name=d%d,mountpoint=%s,writable=on,allow-other=off", i, i, mount))
	}
	m.launch("qemu-storage-daemon", args)
	for _, mount := range m.mounts {
		f, err := os.OpenFile(mount, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		m.files = append(m.files, f)
	}
}

// launch starts the program that is the machine, and waits until it answers.
func (m *machine) launch(program string, args []string) {
	t := m.h.t
	t.Helper()
	log, err := os.Create(m.h.path(m.name + ".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.process = exec.Command(testtool.Need(t, program), args...)
	m.process.Stderr = log
	if err := m.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.kill)
	for deadline := time.Now().Add(30 * time.Second); !m.mounted(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("the machine does not start: %s", said)
		}
	}
}

func (m *machine) mounted() bool {
	for _, mount := range m.mounts {
		var stat unix.Statfs_t
		if unix.Statfs(mount, &stat) != nil || stat.Type != unix.FUSE_SUPER_MAGIC {
			return false
		}
	}
	conn, err := net.Dial("unix", m.spare())
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// stop shuts the machine down, which saves its bitmaps.
func (m *machine) stop() { m.end(syscall.SIGTERM) }

// kill is a crash of QEMU.
func (m *machine) kill() { m.end(syscall.SIGKILL) }

func (m *machine) end(signal syscall.Signal) {
	if m.process == nil {
		return
	}
	for _, f := range m.files {
		_ = f.Close()
	}
	if m.hands != nil {
		_ = m.hands.Close()
	}
	_ = m.process.Process.Signal(signal)
	_ = m.process.Wait()
	m.process = nil
	for _, mount := range m.mounts {
		_ = unix.Unmount(mount, unix.MNT_DETACH)
	}
}

// ask connects to the spare monitor.
func (m *machine) ask(f func(ctx context.Context, q *qmp.Monitor)) {
	t := m.h.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, err := qmp.Dial(ctx, m.spare(), qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	f(ctx, q)
}

// bitmaps are the names of our bitmaps on the disks.
func (m *machine) bitmaps() (names []string) {
	m.h.t.Helper()
	m.ask(func(ctx context.Context, q *qmp.Monitor) {
		var nodes []struct {
			Bitmaps []struct{ Name string } `json:"dirty-bitmaps"`
		}
		m.must(q.Execute(ctx, "query-named-block-nodes", nil, &nodes))
		for _, n := range nodes {
			for _, b := range n.Bitmaps {
				names = append(names, b.Name)
			}
		}
	})
	return names
}

func (m *machine) must(err error) {
	m.h.t.Helper()
	if err != nil {
		m.h.t.Fatal(err)
	}
}

// checkTidy demands that nothing of ours is left in QEMU but one bitmap for each disk
// that can have one, and nothing outside.
func (m *machine) checkTidy() {
	t := m.h.t
	t.Helper()
	m.ask(func(ctx context.Context, q *qmp.Monitor) {
		var jobs, exports []struct{ ID string }
		m.must(q.Execute(ctx, "query-jobs", nil, &jobs))
		m.must(q.Execute(ctx, "query-block-exports", nil, &exports))
		if len(jobs) > 0 || slices.ContainsFunc(exports, func(x struct{ ID string }) bool { return strings.HasPrefix(x.ID, "qb1-") }) {
			t.Errorf("left in QEMU: jobs %v, exports %v", jobs, exports)
		}
		var nodes []struct {
			Name    string `json:"node-name"`
			Bitmaps []struct {
				Name                  string
				Recording, Persistent bool
			} `json:"dirty-bitmaps"`
		}
		m.must(q.Execute(ctx, "query-named-block-nodes", nil, &nodes))
		for _, n := range nodes {
			if strings.HasPrefix(n.Name, "qb1-") {
				t.Errorf("left in QEMU: node %s", n.Name)
			}
			if strings.HasPrefix(n.Name, "d") && (len(n.Bitmaps) != 1 || !n.Bitmaps[0].Recording || !n.Bitmaps[0].Persistent) {
				t.Errorf("bitmaps of %s: %+v", n.Name, n.Bitmaps)
			}
		}
		var objects []struct{ Name string }
		_ = q.Execute(ctx, "qom-list", map[string]string{"path": "/objects"}, &objects) // fails when there never was one
		if slices.ContainsFunc(objects, func(o struct{ Name string }) bool { return strings.HasPrefix(o.Name, "qb1-") }) {
			t.Errorf("left in QEMU: objects %v", objects)
		}
		if err := q.Execute(ctx, "nbd-server-stop", nil, nil); err == nil {
			t.Error("left in QEMU: its NBD server")
		}
	})
	for _, folder := range []string{"state/scratch", "state/run"} {
		entries, _ := os.ReadDir(m.h.path(folder))
		for _, e := range entries {
			t.Errorf("left behind: %s/%s", folder, e.Name())
		}
	}
}

func needDaemon(t testing.TB) {
	t.Helper()
	testtool.Need(t, "qemu-img")
	testtool.Need(t, "qemu-storage-daemon")
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("QBACKUP_REQUIRE_TOOLS") == "1" {
			t.Fatal("FUSE and root are needed (QBACKUP_REQUIRE_TOOLS=1)")
		}
		t.Skip("needs FUSE and root")
	}
}
