package virt_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/offline"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/testtool"
)

func choiceOfDisks(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "choice")
	old := w.addDisk("vdc", false, "-o", "compat=0.10")
	raw := &testDisk{target: "vdd", path: filepath.Join(w.dir, "vdd.raw"), raw: true, content: make([]byte, diskBytes)}
	w.disks = append(w.disks, raw)
	if err := os.WriteFile(raw.path, raw.content, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Virsh(t, "pool-create-as", w.domain, "dir", "--target", w.dir)
	defer l.Virsh(t, "pool-destroy", w.domain)
	w.disk("vda").volume = "vda.qcow2"
	for _, name := range []string{"read-only", "thrown-away", "cd"} {
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(w.dir, name), "1M")
	}
	w.devices = fmt.Sprintf(`<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%[1]s/read-only'/><target dev='vdx' bus='virtio'/><readonly/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%[1]s/thrown-away'/><target dev='vdy' bus='virtio'/><transient/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='qcow2'/><source file='%[1]s/cd'/><target dev='hda' bus='ide'/></disk>
<disk type='file' device='cdrom'><target dev='hdb' bus='ide'/></disk>`, w.dir)
	w.define()
	w.start()
	for _, d := range []string{"vda", "vdb", "vdc", "vdd"} {
		w.write(d, 0, 64<<10, d[2])
	}
	w.mustBackup(full, full, full, full)
	w.write("vdd", 1<<20, 64<<10, 1)
	w.write("vdc", 1<<20, 64<<10, 1)
	w.mustBackup(incremental, incremental, rescan(agent.ReasonVersion2), rescan(agent.ReasonRaw))
	w.shutOff()
	w.mustBackup(incremental, incremental, rescan(agent.ReasonVersion2), rescan(agent.ReasonRaw))
	testtool.Run(t, "qemu-img", "amend", "-f", "qcow2", "-o", "compat=1.1", old.path)
	w.start()
	w.mustBackup(incremental, incremental, rescan(agent.ReasonNoBitmap), rescan(agent.ReasonRaw))
	w.mustBackup(incremental, incremental, incremental, rescan(agent.ReasonRaw))
}

func changingDisks(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "changing")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	w.mustBackup(full, full)
	grown := w.disk("vdb")
	l.Virsh(t, "blockresize", w.domain, "vdb", fmt.Sprintf("%dB", diskBytes+100*512))
	grown.content = append(grown.content, make([]byte, 100*512)...)
	w.write("vdb", diskBytes, 512, 4)
	more := w.addDisk("vdc", false)
	l.Virsh(t, "attach-disk", w.domain, more.path, "vdc", "--subdriver", "qcow2", "--live", "--config")
	w.write("vdc", 0, 64<<10, 5)
	w.mustBackup(incremental, incremental, full)
	w.write("vdc", 64<<10, 64<<10, 6)
	w.write("vda", 0, 64<<10, 2)
	w.mustBackup(incremental, incremental, incremental)

	// A disk that is taken away while the run looks at it.
	w.inspected = func() { l.Virsh(t, "blockresize", w.domain, "vdb", fmt.Sprintf("%dB", diskBytes+200*512)) }
	if _, err := w.backup(); !errors.Is(err, source.ErrChanged) {
		t.Fatalf("error %v", err)
	}
	grown.content = append(grown.content, make([]byte, 100*512)...)
	w.inspected = nil
	w.mustBackup(incremental, incremental, incremental)
}

func externalSnapshot(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "snapshot")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	w.mustBackup(full, full)
	w.write("vda", 1<<20, 64<<10, 2)
	l.Virsh(t, "snapshot-create-as", w.domain, "s1", "--disk-only", "--no-metadata", "--diskspec", "vda,file="+filepath.Join(w.dir, "overlay.qcow2"), "--diskspec", "vdb,snapshot=no")
	w.write("vda", 2<<20, 64<<10, 3)
	// libvirt gives the overlay bitmaps of the same names.
	w.mustBackup(rescan(agent.ReasonTwoLayers), incremental)
	w.write("vda", 3<<20, 64<<10, 4)
	// The checkpoint that was deleted had a bitmap in the file below, too.
	w.mustBackup(rescan(agent.ReasonChainChanged), incremental)
	w.mustBackup(incremental, incremental)
	w.write("vda", 4<<20, 64<<10, 5)
	l.Virsh(t, "blockcommit", w.domain, "vda", "--active", "--pivot", "--wait")
	w.write("vda", 5<<20, 64<<10, 6)
	w.mustBackup(rescan(agent.ReasonChainChanged), incremental)
	w.write("vda", 6<<20, 64<<10, 7)
	w.mustBackup(incremental, incremental)
}

func sharedImage(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "shared")
	w.disk("vdb").path = w.disk("vda").path
	w.define()
	if _, err := w.backup(); !errors.Is(err, offline.ErrSameFile) {
		t.Errorf("error %v", err)
	}
	// Two raw disks may be one file while the machine runs.
	shared := filepath.Join(w.dir, "shared.raw")
	if err := os.WriteFile(shared, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w.disks = w.disks[:1]
	for _, name := range []string{"vdc", "vdd"} {
		w.devices += fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='%s' bus='virtio'/><shareable/></disk>", shared, name)
	}
	w.define()
	w.start()
	if _, err := w.backup(); !errors.Is(err, offline.ErrSameFile) || !errors.Is(err, source.ErrUnusable) {
		t.Errorf("error %v", err)
	}
}

func extraFiles(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "firmware")
	code, template := filepath.Join(w.dir, "code.fd"), filepath.Join(w.dir, "vars.fd")
	variables := []byte(strings.Repeat("some variables. ", 4096))
	for path, content := range map[string][]byte{code: make([]byte, 64<<10), template: variables} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.os = fmt.Sprintf("<loader readonly='yes' type='pflash'>%s</loader><nvram template='%s'>%s</nvram>", code, template, filepath.Join(w.dir, "nvram.fd"))
	w.devices = "<graphics type='vnc' socket='" + l.Dir("vnc") + "' passwd='hush'/>"
	w.define()
	w.start()
	want := func(s agent.Summary, variablesThere bool) {
		t.Helper()
		files := w.extras(s.Point)
		definition := string(files[virt.ExtraDefinition])
		if !strings.Contains(definition, "<name>firmware</name>") || strings.Contains(definition, "hush") || strings.Contains(definition, "<alias") {
			t.Errorf("definition: %s", definition)
		}
		if got := string(files[virt.ExtraVariables]); got != string(variables) && variablesThere {
			t.Errorf("%d bytes of variables, want %d", len(got), len(variables))
		}
	}
	want(w.mustBackup(full, full), true)
	w.shutOff()
	want(w.mustBackup(incremental, incremental), true)
	if err := os.Remove(filepath.Join(w.dir, "nvram.fd")); err != nil {
		t.Fatal(err)
	}
	want(w.mustBackup(incremental, incremental), false)
}
