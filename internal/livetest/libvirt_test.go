package livetest

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/testtool"
)

// A domain, by its name, from the command line: running, off, and running again.
func TestADomainOfLibvirtIsBackedUpByItsName(t *testing.T) {
	l := testtool.StartLibvirtd(t)
	defer l.Stop(t)
	h := newHost(t)
	image, halt, definition := h.path("disk.qcow2"), h.path("halt.rom"), h.path("domain.xml")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
	testtool.Run(t, "qemu-io", "-c", "write -P 5 1M 1M", image)
	for path, content := range map[string][]byte{
		halt: bytes.Repeat([]byte{0xf4}, 64<<10), // a firmware that leaves the processor to others
		definition: fmt.Appendf(nil, `<domain type='qemu'><name>Web 01</name><memory unit='MiB'>32</memory><iothreads>1</iothreads>
<os><type arch='x86_64' machine='pc'>hvm</type><loader type='rom'>%s</loader></os><features><acpi/></features>
<devices><emulator>%s</emulator><disk type='file' device='disk'><driver name='qemu' type='qcow2' iothread='1'/><source file='%s'/>
<target dev='vda' bus='virtio'/></disk><memballoon model='none'/></devices></domain>`, halt, testtool.Need(t, "qemu-system-x86_64"), image),
	} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (string, string, int) {
		c := l.Inside(t, program, args...)
		c.Env = h.env
		var out, problems bytes.Buffer
		c.Stdout, c.Stderr = &out, &problems
		_ = c.Run()
		return out.String(), problems.String(), c.ProcessState.ExitCode()
	}
	backup := func() agent.Summary {
		t.Helper()
		stdout, stderr, code := run("backup", "--json", "--libvirt", "Web 01", "--libvirt-uri", l.URI)
		if code != 0 {
			t.Fatalf("exit %d: %s%s", code, stdout, stderr)
		}
		return h.summary(stdout)
	}
	_, stderr, code := run("backup", "--libvirt", "Web 01", "--libvirt-uri", l.URI)
	if code != 20 || !strings.Contains(stderr, "Web 01") {
		t.Errorf("not defined: exit %d: %s", code, stderr)
	}
	l.Virsh(t, "define", definition)
	s := backup()
	if modes(s) != "full (first backup)" || s.Machine != "x57_ebx20_01" || s.Disks[0].Name != "vda" || s.Consistency != "offline" {
		t.Errorf("off: %s of %s, %+v", modes(s), s.Machine, s)
	}
	l.Virsh(t, "start", "Web 01")
	if s = backup(); modes(s) != "incremental" || s.Consistency != "crash" {
		t.Errorf("running: %s, %s", modes(s), s.Consistency)
	}
	l.Virsh(t, "qemu-monitor-command", "Web 01", "--hmp", `qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 6 3M 64k"`)
	if s = backup(); modes(s) != "incremental" || s.Disks[0].DirtyBytes != 64<<10 {
		t.Errorf("after a write: %s, %+v", modes(s), s.Disks)
	}
	if list := strings.Fields(l.Virsh(t, "checkpoint-list", "Web 01", "--name")); len(list) != 1 {
		t.Errorf("checkpoints %v", list)
	}
	l.Virsh(t, "destroy", "Web 01", "--graceful")
	if s = backup(); modes(s) != "incremental" || s.Consistency != "offline" {
		t.Errorf("off again: %s, %s", modes(s), s.Consistency)
	}
	content := h.content(string(s.Machine), s.Point, "vda")
	if content[mib] != 5 || content[3*mib] != 6 || content[3*mib-1] != 0 || content[3*mib+64<<10] != 0 {
		t.Error("the point is not what the guest wrote")
	}
	h.ok("restore", "--machine", string(s.Machine), "--to", h.path("restored.raw"), "--extras", h.path("extras"))
	text, err := os.ReadFile(h.path("extras/domain.xml"))
	if err != nil || !bytes.Contains(text, []byte("<name>Web 01</name>")) {
		t.Errorf("the definition: %v\n%s", err, text)
	}
}
