package virt_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/testtool"
)

// foreign starts a backup job as another program would.
func (w *world) foreign(checkpoint string) {
	w.t.Helper()
	job := filepath.Join(w.dir, "foreign.xml")
	text := fmt.Sprintf(`<domainbackup mode='pull'><server transport='unix' socket='%s'/><disks>
<disk name='vda' backup='yes' type='file'><scratch file='%s'/></disk></disks></domainbackup>`, w.runtimeDir()+"-foreign", filepath.Join(w.dir, "foreign.qcow2"))
	if err := os.WriteFile(job, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	args := []string{"backup-begin", w.domain, job}
	if checkpoint != "" {
		path := filepath.Join(w.dir, "foreign-checkpoint.xml")
		text := fmt.Sprintf("<domaincheckpoint><name>%s</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>", checkpoint)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
		args = append(args, path)
	}
	w.libvirt.Virsh(w.t, args...)
}

func worksOfOthers(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "others")
	w.define()
	w.start()
	w.foreign("theirs")
	s, err := w.backup()
	if !errors.Is(err, virt.ErrBusy) || !errors.Is(err, source.ErrUnusable) || !s.Point.IsZero() {
		t.Fatalf("point %s, error %v", s.Point, err)
	}
	if out := l.Virsh(t, "domjobinfo", w.domain); !strings.Contains(out, "Backup") {
		t.Errorf("the other job was ended: %s", out)
	}
	l.Virsh(t, "domjobabort", w.domain)
	other := ident.BitmapName{Family: ident.FamilyID{1, 2, 3, 4}, Stamp: ident.RunID{5}}.String()
	w.others = []string{"theirs"}
	w.write("vda", 0, 1<<20, 1)
	w.mustBackup(full, full)
	w.foreign(other)
	l.Virsh(t, "domjobabort", w.domain)
	w.others = []string{other, "theirs"}
	w.write("vda", 0, 64<<10, 2)
	w.mustBackup(incremental, incremental)
	w.shutOff()
	w.mustBackup(incremental, incremental)
	w.start()
	w.write("vda", 0, 64<<10, 3)
	w.mustBackup(incremental, incremental)
	out := l.Virsh(t, "qemu-monitor-command", w.domain, `{"execute":"query-named-block-nodes"}`)
	for _, name := range w.others {
		if !strings.Contains(out, `"name":"`+name+`"`) {
			t.Errorf("bitmap %s is gone", name)
		}
	}
}

func disturbedBitmaps(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "disturbed")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	s := w.mustBackup(full, full)
	command := func(name, arguments string) {
		t.Helper()
		out := l.Virsh(t, "qemu-monitor-command", w.domain, fmt.Sprintf(`{"execute":"%s","arguments":{%s}}`, name, arguments))
		if strings.Contains(out, "error") {
			t.Fatal(out)
		}
	}
	name := ident.BitmapName{Family: w.family, Stamp: s.Point}
	command("block-dirty-bitmap-disable", fmt.Sprintf(`"node":"%s","name":"%s"`, w.node("vda"), name))
	w.write("vda", 0, 64<<10, 2)
	w.write("vdb", 0, 64<<10, 2)
	s = w.mustBackup(rescan(agent.ReasonUnknownFlags), incremental)

	// QEMU has one NBD server.
	name.Stamp = s.Point
	command("nbd-server-start", fmt.Sprintf(`"addr":{"type":"unix","data":{"path":"%s"}}`, w.runtimeDir()+"-foreign"))
	command("block-export-add", fmt.Sprintf(`"type":"nbd","id":"foreign","node-name":"%s","bitmaps":[{"node":"%s","name":"%s"}]`, w.node("vda"), w.node("vda"), name))
	if _, err := w.backup(); !errors.Is(err, virt.ErrBusy) {
		t.Errorf("error %v", err)
	}
	command("nbd-server-stop", "")
	w.mustBackup(incremental, incremental)
}
