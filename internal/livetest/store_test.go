package livetest

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestAStoreThatGoesAwayLeavesTheGuestAlone(t *testing.T) {
	x := newTrial(t, 71)
	defer x.g.halt()
	for n := range testtool.Count(2, 10) {
		repository, away := x.h.path("repository"), x.h.path("away")
		gone := x.random.IntN(2) == 0
		run := x.h.command("backup", "--qmp", x.monitor(), "--machine", x.name, "--retry-for", "1s")
		begun := time.Now()
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(x.random.Int64N(int64(x.usual))))
		if err := os.Rename(repository, away); err != nil {
			t.Fatal(err)
		}
		if gone { // for good, as far as this run is concerned
			_ = run.Wait()
		}
		if err := os.Rename(away, repository); err != nil {
			t.Fatal(err)
		}
		_ = run.Wait()
		x.checkNew(begun)
		x.after("store", "incremental")
		t.Logf("try %d: the run ended with %d", n, run.ProcessState.ExitCode())
	}
}

func TestARawDiskIsReadWholeAndSaysSo(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	m := &machine{h: h, name: "vm"}
	m.makeDisks([]int64{4 * mib, 4 * mib})
	testtool.Run(t, "qemu-img", "amend", "-o", "compat=0.10", m.images[1])
	m.start()
	g := newGuest(t, 72, 1, 4*mib, 4*mib)
	g.run(m)
	defer g.halt()
	m.backupChecked(g)
	for range 2 {
		s := m.backupChecked(g)
		if s.Disks[0].Mode != "incremental" || s.Disks[1].Mode != "rescan" || s.Disks[1].Reason != "qcow2 version 2 has no bitmaps" {
			t.Errorf("%s", modes(s))
		}
	}
}

func TestTwoRepositoriesSideBySideStayIncremental(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	m := newMachine(h, "vm", 4*mib)
	other := &host{t: t, dir: h.dir, env: append(os.Environ(), "QBACKUP_REPOSITORY="+h.path("other"), "QBACKUP_STATE_DIR="+h.path("other-state"), "CACHE_DIRECTORY="+h.path("other-cache"))}
	other.ok("init")
	g := newGuest(t, 73, 1, 4*mib)
	g.run(m)
	defer g.halt()
	args := []string{"--qmp", m.monitor(), "--machine", "vm"}
	for n := range 3 {
		for _, repository := range []*host{h, other} {
			if s := repository.backup(args...); n > 0 && modes(s) != "incremental" {
				t.Errorf("run %d: %s", n, modes(s))
			}
		}
	}
	if names := m.bitmaps(); len(names) != 2 {
		t.Errorf("bitmaps %v", names)
	}
	other.ok("verify", "--data")
}

func TestAMonitorThatIsTakenIsSaid(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	m := newMachine(h, "vm", 4*mib)
	holder, err := net.Dial("unix", m.monitor())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if _, err := holder.Read(make([]byte, 1)); err != nil { // of its greeting
		t.Fatal(err)
	}
	_, stderr, code := h.run("backup", "--qmp", m.monitor(), "--machine", "vm")
	if code != 20 || !strings.Contains(stderr, "taken") || !strings.Contains(stderr, "monitor of its own") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
