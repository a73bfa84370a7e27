package virt_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/testtool"
)

func namesAndStates(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "7")
	_, err := w.backup()
	if !errors.Is(err, virt.ErrDomain) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "not defined") {
		t.Errorf("error %v", err)
	}
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	l.Virsh(t, "suspend", w.domain)
	w.mustBackup(full, full)
	w.mustBackup(incremental, incremental)
	if state := l.Virsh(t, "domstate", w.domain); state != "paused" {
		t.Errorf("a paused machine is %s afterwards", state)
	}
	w.io("/machine/peripheral/virtio-disk0/virtio-backend", "flush")
	w.change = func(o *virt.Options) { o.Domain = l.Virsh(t, "domuuid", w.domain) }
	w.mustBackup(incremental, incremental)

	l.Virsh(t, "managedsave", w.domain)
	w.mustBackup(incremental, incremental)
	// What is not defined is there as long as it runs.
	l.Virsh(t, "start", w.domain)
	l.Virsh(t, "undefine", w.domain, "--checkpoints-metadata")
	w.write("vda", 0, 64<<10, 2)
	w.mustBackup(incremental, incremental)
	for _, c := range []struct{ uri, want string }{
		{"qemu+ssh://elsewhere/system", "another host"}, {"qemu+unix:///system?socket=/nowhere", "start libvirtd"}, {"::", "no URI"},
	} {
		w.change = func(o *virt.Options) { o.URI = c.uri }
		if _, err := w.backup(); !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v", c.uri, err)
		}
	}
}

func scratchSpace(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "scratch")
	scratch := l.Small()
	big := w.addDisk("vdc", false)
	testtool.Run(t, "qemu-img", "resize", "-q", big.path, "1G")
	big.content = nil
	w.change = func(o *virt.Options) { o.ScratchDir, o.ScratchFloorBytes = scratch, 0 }
	w.define()
	w.start()
	const step = 8 << 20
	fill := func(pattern string) {
		for off := 0; off < testtool.Count(256<<20, 1<<30); off += step {
			w.io("/machine/peripheral/virtio-disk2/virtio-backend", fmt.Sprintf("write -P %s %d %d", pattern, off, step))
		}
	}
	fill("1")
	w.write("vda", 0, 1<<20, 1)
	w.meanwhile = func() { fill("2") }
	_, err := w.backup()
	if !errors.Is(err, source.ErrScratch) || !errors.Is(err, source.ErrUnusable) {
		t.Fatalf("error %v", err)
	}
	if state := l.Virsh(t, "domstate", w.domain, "--reason"); !strings.HasPrefix(state, "running") {
		t.Errorf("the guest is %s", state)
	}
	if out := l.Virsh(t, "domblkerror", w.domain); out != "No errors found" {
		t.Errorf("the guest met %s", out)
	}
	entries, err := os.ReadDir(scratch)
	if err != nil || len(entries) > 0 {
		t.Errorf("%d files are left in the scratch space, %v", len(entries), err)
	}
}
