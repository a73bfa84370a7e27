package livetest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/testtool"
)

// command runs a QMP command at the spare monitor, and gives its error.
func (m *machine) command(name string, arguments map[string]any) (err error) {
	m.h.t.Helper()
	m.ask(func(ctx context.Context, q *qmp.Monitor) { err = q.Execute(ctx, name, arguments, nil) })
	return err
}

// mustSoon runs a command that may have to wait for a backup to end.
func (m *machine) mustSoon(name string, arguments map[string]any) {
	m.h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := m.command(name, arguments)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.h.t.Fatalf("%s: %v", name, err)
		}
	}
}

func TestADiskMayComeAndGoDuringABackup(t *testing.T) {
	x := newTrial(t, 51)
	defer x.g.halt()
	image := x.h.path("extra.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "4M")
	testtool.Run(t, "qemu-io", "-c", "write -P 7 1M 1M", image)
	mount := x.h.path("extra-guest")
	if err := os.WriteFile(mount, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range testtool.Count(2, 20) {
		x.disturbed(func(*exec.Cmd) {
			x.must(x.command("blockdev-add", map[string]any{"driver": "qcow2", "node-name": "extra", "file": map[string]any{"driver": "file", "filename": image}}))
			x.must(x.command("block-export-add", map[string]any{"type": "fuse", "id": "extra", "node-name": "extra", "mountpoint": mount, "writable": true}))
		})
		s := x.backupChecked(x.g)
		x.known++
		if d := s.Disks[0]; len(s.Disks) != 3 || d.Name != "extra" || n > 0 && d.Mode != "incremental" {
			t.Errorf("plugged %d: %+v", n, s.Disks)
		}
		content := x.h.content("vm", s.Point, "extra")
		if content[mib-1] != 0 || content[mib] != 7 || content[2*mib-1] != 7 || content[2*mib] != 0 {
			t.Errorf("plugged %d: the disk is not what it was", n)
		}
		x.disturbed(func(*exec.Cmd) {
			x.must(x.command("block-export-del", map[string]any{"id": "extra", "mode": "hard"}))
		})
		x.mustSoon("blockdev-del", map[string]any{"node-name": "extra"})
		s = x.backupChecked(x.g)
		x.known++
		if len(s.Disks) != 2 || modes(s) != "incremental" {
			t.Errorf("unplugged %d: %s, %d disks", n, modes(s), len(s.Disks))
		}
		// It is said once: by this run, or by the one before, when the disk went before it looked.
		for _, a := range s.Alarms {
			if a.Kind != agent.AlarmDiskGone {
				t.Errorf("unplugged %d: %s: %s", n, a.Kind, a.Text)
			}
		}
	}
	x.checkTidy()
}

func TestADiskMayGrowDuringABackup(t *testing.T) {
	x := newTrial(t, 52)
	defer x.g.halt()
	size := int64(6 * mib)
	for n := range testtool.Count(2, 20) {
		size += 1<<20 + 512*int64(x.random.IntN(1000))
		grow := map[string]any{"node-name": "d0", "size": size}
		x.disturbed(func(*exec.Cmd) {
			if x.command("block_resize", grow) != nil {
				return // QEMU resizes no disk that is being backed up
			}
		})
		x.mustSoon("block_resize", grow)
		x.after(fmt.Sprintf("grown %d", n), "incremental")
		points := x.h.points("vm")
		if got := int64(len(x.h.content("vm", points[len(points)-1], "vm-0"))); got != size {
			t.Errorf("grown %d: the point has %d bytes, the disk %d", n, got, size)
		}
	}
}

func TestASnapshotMayComeAndGoDuringABackup(t *testing.T) {
	x := newTrialOn(newEmulator(newHost(t), "vm", trialSizes()...), 53)
	defer x.g.halt()
	for n := range testtool.Count(2, 20) {
		over := x.h.path(fmt.Sprintf("over-%d.qcow2", n))
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", x.images[0], "-F", "qcow2", over)
		x.must(x.command("blockdev-add", map[string]any{"driver": "qcow2", "node-name": "over", "backing": nil, "file": map[string]any{"driver": "file", "filename": over}}))
		snapshot := map[string]any{"node": "d0", "overlay": "over"}
		taken := false
		x.disturbed(func(*exec.Cmd) { taken = x.command("blockdev-snapshot", snapshot) == nil })
		if !taken { // not during the backup of the disk
			x.mustSoon("blockdev-snapshot", snapshot)
		}
		// The rescan is this run's, or that of the one before, when the snapshot came before it looked.
		points := x.h.points("vm")
		before := x.h.mode("vm", points[len(points)-1], "vm-0")
		s := x.backupChecked(x.g)
		x.known++
		says := modes(s)
		if s.Disks[0].Name != "vm-0" || says != "incremental, rescan (no bitmap)" && (says != "incremental" || before != "rescan") {
			t.Errorf("snapshot %d: %s of %s after %s", n, says, s.Disks[0].Name, before)
		}
		s = x.backupChecked(x.g)
		x.known++
		if says := modes(s); says != "incremental" || len(s.Alarms) > 0 {
			t.Errorf("after snapshot %d: %s, alarms %v", n, says, s.Alarms)
		}
		x.disturbed(func(*exec.Cmd) { x.commit() })
		x.mustSoon("blockdev-del", map[string]any{"node-name": "over"})
		s = x.backupChecked(x.g)
		x.known++
		// The base has recorded what was committed into it, since an older point.
		if says := modes(s); !strings.HasPrefix(says, "incremental") && says != "incremental, rescan (chain changed)" {
			t.Errorf("commit %d: %s", n, says)
		}
		x.checkTidy()
	}
}

// commit merges the overlay into its base, beside what else goes on.
func (x *trial) commit() {
	x.mustSoon("block-commit", map[string]any{"job-id": "commit", "device": "over", "auto-dismiss": true})
	x.mustSoon("job-complete", map[string]any{"id": "commit"})
	x.ask(func(ctx context.Context, q *qmp.Monitor) {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			var jobs []struct{ ID string }
			x.must(q.Execute(ctx, "query-jobs", nil, &jobs))
			done := true
			for _, j := range jobs {
				done = done && j.ID != "commit"
			}
			if done {
				return
			}
			if time.Now().After(deadline) {
				x.h.t.Fatal("the commit does not end")
			}
		}
	})
}
