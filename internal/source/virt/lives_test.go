package virt_test

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/testtool"
)

func staysIncremental(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "Web 01")
	w.define()
	w.start()
	w.write("vda", 1<<20, 64<<10, 1)
	w.write("vdb", 2<<20, 300<<10, 2)
	w.meanwhile = func() { // must not be in the point of this run, and must be in the next
		w.write("vda", 1<<20, 4<<10, 8)
		w.write("vdb", 5<<20, 1<<20, 9)
	}
	w.mustBackup(full, full)
	w.write("vda", 7<<20, 64<<10, 3)
	s := w.mustBackup(incremental, incremental)
	if s.Disks[0].DirtyBytes != 128<<10 || s.Disks[1].DirtyBytes != 1<<20 {
		t.Errorf("dirty are %d and %d bytes", s.Disks[0].DirtyBytes, s.Disks[1].DirtyBytes)
	}
	w.write("vda", 3<<20, 64<<10, 4)
	w.meanwhile = nil
	w.shutOff()
	w.mustBackup(incremental, incremental)
	w.start()
	w.write("vdb", 0, 64<<10, 5)
	w.mustBackup(incremental, incremental)
	w.write("vdb", 64<<10, 64<<10, 6)
	// libvirt asks QEMU to end, and QEMU saves the bitmaps: nothing is lost.
	w.libvirt.Virsh(t, "destroy", w.domain)
	w.mustBackup(incremental, incremental)
	w.start()
	w.write("vdb", 128<<10, 64<<10, 7)
	w.mustBackup(incremental, incremental)
	if state := l.Virsh(t, "domstate", w.domain); state != "running" {
		t.Errorf("afterwards it is %s", state)
	}
}

// kill ends QEMU as a power cut would, and waits until libvirt has noticed.
func (w *world) kill() {
	w.t.Helper()
	out := w.libvirt.Virsh(w.t, "qemu-monitor-command", w.domain, "--hmp", "info version")
	if out == "" {
		w.t.Fatal("QEMU does not answer")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(w.libvirt.Pid(w.t, w.domain)))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	for range 200 {
		if out, _ := w.libvirt.Try("domstate", w.domain); out == "shut off" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.t.Fatal("libvirt does not notice that QEMU has ended")
}

func crashOfQEMU(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "crash")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	w.mustBackup(full, full)
	w.shutOff()
	w.start()
	w.write("vda", 0, 64<<10, 2)
	w.kill()
	w.start()
	w.write("vdb", 0, 64<<10, 3)
	// The bitmaps were in the images when QEMU started, and were not saved.
	w.mustBackup(rescan(agent.ReasonInUse), rescan(agent.ReasonInUse))
	w.write("vda", 64<<10, 64<<10, 4)
	w.mustBackup(incremental, incremental)
	w.write("vda", 128<<10, 64<<10, 5)
	w.kill()
	w.start()
	// The bitmaps of this start were in memory only.
	w.mustBackup(rescan(agent.ReasonNoBitmap), rescan(agent.ReasonNoBitmap))
	w.write("vda", 192<<10, 64<<10, 6)
	w.kill()
	w.mustBackup(rescan(agent.ReasonNoBitmap), rescan(agent.ReasonNoBitmap))
	w.start()
	w.write("vda", 256<<10, 64<<10, 7)
	w.mustBackup(incremental, incremental)
}
