package live

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

var testFamily = ident.FamilyID{0xab, 0xcd, 0xef, 0x01}

func testRun(n byte) ident.RunID { return ident.RunID{6: 0x70, 8: 0x80, 15: n} }

func bitmapOf(run, prev byte) string {
	n := ident.BitmapName{Family: testFamily, Stamp: testRun(run)}
	if prev != 0 {
		n.Prev = testRun(prev)
	}
	return n.String()
}

// daemon is a qemu-storage-daemon.
type daemon struct {
	t       *testing.T
	dir     string
	process *os.Process
}

// image makes an empty qcow2 image.
func (d *daemon) image(name string, args ...string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	testtool.Run(d.t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "4M")...)
	return path
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	testtool.Need(t, "qemu-img")
	testtool.Need(t, "qemu-storage-daemon")
	dir, err := os.MkdirTemp("", "qb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &daemon{t: t, dir: dir}
}

// start starts it with a node d0, d1... for each --blockdev, to each of which an export
// may write: over NBD sockets of vhost-user, which need nobody to connect.
func (d *daemon) start(blockdevs ...string) {
	d.t.Helper()
	var args []string
	for i, m := range []string{d.monitor(), d.spare()} {
		args = append(args, "--chardev", fmt.Sprintf("socket,id=m%d,path=%s,server=on,wait=off", i, m), "--monitor", fmt.Sprintf("chardev=m%d", i))
	}
	for i, b := range blockdevs {
		args = append(args, "--blockdev", fmt.Sprintf("node-name=d%d,%s", i, b),
			"--export", fmt.Sprintf("type=vhost-user-blk,id=guest%d,node-name=d%d,addr.type=unix,addr.path=%s/vhost%d,writable=on", i, i, d.dir, i))
	}
	c := exec.Command("qemu-storage-daemon", args...)
	c.Dir = d.dir
	var said strings.Builder
	c.Stderr = &said
	if err := c.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.process = c.Process
	d.t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", d.spare()); err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("qemu-storage-daemon does not start: %s", said.String())
		}
	}
}

func (d *daemon) monitor() string { return filepath.Join(d.dir, "qmp") }
func (d *daemon) spare() string   { return filepath.Join(d.dir, "spare") }

func (d *daemon) machine() *Machine {
	return New(Options{Family: testFamily, Monitor: d.monitor(), ScratchDir: filepath.Join(d.dir, "scratch"), RuntimeDir: filepath.Join(d.dir, "run")})
}

// ask runs a command at the other monitor.
func (d *daemon) ask(command string, arguments, result any) error {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, err := qmp.Dial(ctx, d.spare(), qmp.Options{})
	if err != nil {
		d.t.Fatal(err)
	}
	defer m.Close()
	return m.Execute(ctx, command, arguments, result)
}

func (d *daemon) must(command string, arguments any) {
	d.t.Helper()
	if err := d.ask(command, arguments, nil); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) inspect(m *Machine) source.Evidence {
	d.t.Helper()
	e, err := m.Inspect(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return e
}

// bitmaps gives the names of the bitmaps of a node, each with a mark for what it is.
func (d *daemon) bitmaps(node string) map[string]string {
	d.t.Helper()
	var nodes []nodeInfo
	if err := d.ask("query-named-block-nodes", nil, &nodes); err != nil {
		d.t.Fatal(err)
	}
	found := map[string]string{}
	for _, n := range nodes {
		if n.Name != node {
			continue
		}
		for _, b := range n.Bitmaps {
			what := "frozen"
			if b.Recording {
				what = "recording"
			}
			if b.Persistent {
				what += " persistent"
			}
			found[b.Name] = what
		}
	}
	return found
}

// tidy demands that nothing of ours is left but bitmaps.
func (d *daemon) tidy() {
	d.t.Helper()
	var jobs []jobInfo
	var exports []exportInfo
	var nodes []nodeInfo
	for command, result := range map[string]any{"query-jobs": &jobs, "query-block-exports": &exports, "query-named-block-nodes": &nodes} {
		if err := d.ask(command, nil, result); err != nil {
			d.t.Fatal(err)
		}
	}
	for _, x := range exports {
		if ours(x.ID) {
			d.t.Errorf("export %s is left", x.ID)
		}
	}
	for _, n := range nodes {
		if ours(n.Name) {
			d.t.Errorf("node %s is left", n.Name)
		}
	}
	if len(jobs) > 0 {
		d.t.Errorf("jobs are left: %v", jobs)
	}
	if d.ask("nbd-server-stop", nil, nil) == nil {
		d.t.Error("the NBD server is left")
	}
	for _, folder := range []string{"scratch", "run"} {
		entries, _ := os.ReadDir(filepath.Join(d.dir, folder))
		for _, e := range entries {
			d.t.Errorf("%s/%s is left", folder, e.Name())
		}
	}
}
