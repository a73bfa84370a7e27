package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// points are the ids of a machine's points, oldest first.
func (w *world) points(machine string) []string {
	w.t.Helper()
	var list []struct {
		Machine string `json:"machine"`
		Point   string `json:"point"`
	}
	if err := json.Unmarshal([]byte(w.ok("points", "--json", "--machine", machine)), &list); err != nil {
		w.t.Fatalf("points --json: %v", err)
	}
	var ids []string
	for _, p := range list {
		ids = append(ids, p.Point)
	}
	return ids
}

// restoresTo demands that a point restores to exactly one of the given raw copies.
func (w *world) restoresTo(machine, point string, copies ...string) {
	w.t.Helper()
	to := w.path("restored-" + point + ".raw")
	w.ok("restore", "--machine", machine, "--point", point, "--to", to)
	defer os.Remove(to)
	for _, c := range copies {
		if _, code := testtool.Try(w.t, "cmp", "-s", to, c); code == 0 {
			return
		}
	}
	w.t.Fatalf("point %s restores to none of %v", point, copies)
}

func (w *world) rawCopy(image, name string) string {
	w.t.Helper()
	to := w.path(name)
	testtool.Run(w.t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, to)
	return to
}

// timeOf makes a backup and says how long it took.
func (w *world) timeOf(image string) time.Duration {
	w.t.Helper()
	started := time.Now()
	w.backup(image)
	return time.Since(started)
}

func TestAfterSIGKILLAtAnyInstantTheNextRunSucceedsByItself(t *testing.T) {
	const sizeBytes = 48 << 20
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, fmt.Sprint(sizeBytes))
	c := newChurn(image, sizeBytes, 65536, 11)
	c.write(t, 80)
	w.backup(image)
	usual := w.timeOf(image) // of the last run that was left alone
	random := rand.New(rand.NewPCG(11, 12))
	known := len(w.points("vm"))
	killed, published := 0, 0
	for n := range testtool.Count(25, 200) {
		c.write(t, 6)
		truth := w.rawCopy(image, "truth.raw")

		victim := w.command("backup", image)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.Int64N(int64(usual * 11 / 10))))
		_ = victim.Process.Signal(syscall.SIGKILL)
		if victim.Wait() != nil {
			killed++
		}
		after := w.points("vm")
		published += len(after) - known

		started := time.Now()
		s := w.backup(image)
		usual = time.Since(started)
		if mode := s.Disks[0].Mode; mode != "incremental" {
			// The reset is cut: that may cost a rescan, with its reason, never a wrong point.
			t.Logf("kill %d: the next run says %s: %s", n, mode, s.Disks[0].Reason)
		}
		all := w.points("vm")
		for _, p := range all[known:] {
			w.restoresTo("vm", p, truth)
		}
		known = len(all)
		if _, code := testtool.Try(t, "qemu-img", "check", image); code != 0 && code != 3 {
			t.Fatalf("kill %d: qemu-img check says %d", n, code)
		}
	}
	t.Logf("%d of %d runs were killed; the last run took %v; %d killed runs had published", killed, testtool.Count(25, 200), usual.Round(time.Millisecond), published)
	w.ok("verify", "--data")
}

func TestQEMUMayOpenTheImageAtAnyInstant(t *testing.T) {
	const sizeBytes = 64 << 20
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, fmt.Sprint(sizeBytes))
	c := newChurn(image, sizeBytes, 65536, 21)
	c.write(t, 80)
	w.backup(image)
	usual := w.timeOf(image)
	random := rand.New(rand.NewPCG(21, 22))
	known := len(w.points("vm"))
	yielded, refused := 0, 0
	for n := range testtool.Count(12, 50) {
		c.write(t, 12)
		before := w.rawCopy(image, "before.raw")

		run := w.command("backup", image)
		var stderr bytes.Buffer
		run.Stderr = &stderr
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.Int64N(int64(usual * 11 / 10))))
		out, code := testtool.Try(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 77 %d 64k", random.Int64N(sizeBytes/65536)*65536), image)
		_ = run.Wait()
		exit := run.ProcessState.ExitCode()
		switch {
		case exit == 20:
			yielded++
		case exit != 0:
			t.Fatalf("try %d: backup exits %d: %s", n, exit, stderr.String())
		}
		if code != 0 {
			// Only the final phase denies QEMU, and a run that is in its final phase publishes.
			refused++
			if exit != 0 {
				t.Fatalf("try %d: QEMU could not open the image though the run did not publish: %s", n, out)
			}
		}
		after := w.rawCopy(image, "after.raw")
		all := w.points("vm")
		for _, p := range all[known:] {
			w.restoresTo("vm", p, before, after)
		}
		usual = w.timeOf(image)
		all = w.points("vm")
		w.restoresTo("vm", all[len(all)-1], after)
		known = len(all)
		w.clean(image)
	}
	t.Logf("%d runs yielded to QEMU; QEMU was refused in the final phase %d times", yielded, refused)
}
