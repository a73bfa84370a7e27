package livetest

import (
	"os"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestAMachineOfAnotherUserNeedsNoFlags(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can start a machine as another user")
	}
	testtool.Need(t, "qemu-img")
	h := newHost(t)
	if err := os.Chmod(h.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	m := &machine{h: h, name: "web1", emulated: true, runas: "64055:64055"}
	m.makeDisks([]int64{4 << 20})
	m.start()
	h.backup("--qmp", m.monitor(), "--machine", "web1")
	if err := m.qemuIO(0, "write -P 7 1M 128k"); err != nil {
		t.Fatal(err)
	}
	s := h.backup("--qmp", m.monitor(), "--machine", "web1")
	if got := modes(s); !strings.Contains(got, "incremental") {
		t.Errorf("%s", got)
	}
	if got := h.content("web1", s.Point, "web1-0"); got[1<<20] != 7 || got[0] != 0 {
		t.Error("the point has other data")
	}
	m.checkTidy()
	// Others may pass through the state directory, and see nothing of it.
	entries, err := os.ReadDir(h.path("state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode().Perm()&0o066 != 0 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

func TestADryRunOfARunningMachineWritesNothing(t *testing.T) {
	testtool.Need(t, "qemu-img")
	h := newHost(t)
	m := &machine{h: h, name: "web1", emulated: true}
	m.makeDisks([]int64{4 << 20})
	m.start()
	if err := os.RemoveAll(h.path("state")); err != nil {
		t.Fatal(err)
	}
	h.ok("backup", "--dry-run", "--qmp", m.monitor(), "--machine", "web1", "--guest-agent", h.path("agent"), "--freeze", "require")
	if _, err := os.Stat(h.path("state")); !os.IsNotExist(err) {
		t.Errorf("the state directory: %v", err)
	}
}
