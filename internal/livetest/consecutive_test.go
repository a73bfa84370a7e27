package livetest

import (
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/testtool"
)

// check demands that a point is what the guest's disks were at one instant.
func (m *machine) check(g *guest, point ident.RunID, begun, ended time.Time) {
	m.h.t.Helper()
	var disks [][]byte
	for _, disk := range m.disks {
		disks = append(disks, m.h.content(m.name, point, disk))
	}
	if err := g.judge(disks, begun, ended); err != nil {
		m.h.t.Fatalf("point %s: %v", point, err)
	}
}

// backupChecked makes a point and checks it.
func (m *machine) backupChecked(g *guest) agent.Summary {
	m.h.t.Helper()
	begun := time.Now()
	s := m.h.backup("--qmp", m.monitor(), "--machine", m.name)
	m.check(g, s.Point, begun, time.Now())
	return s
}

const mib = 1 << 20

func TestEveryPointOfABusyMachineIsOneInstant(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	m := newMachine(h, "vm", 8*mib, 12*mib, 8*mib)
	g := newGuest(t, 31, 3, 8*mib, 12*mib, 8*mib)
	g.run(m)
	defer g.halt()
	if s := m.backupChecked(g); modes(s) != "full (first backup)" {
		t.Fatalf("the first run says %s", modes(s))
	}
	var dirty, read int64
	runs := testtool.Count(8, 100)
	for n := range runs {
		s := m.backupChecked(g)
		if modes(s) != "incremental" {
			t.Fatalf("run %d says %s", n, modes(s))
		}
		if s.Consistency != "crash" {
			t.Fatalf("run %d says that it is %s", n, s.Consistency)
		}
		for _, d := range s.Disks {
			dirty, read = dirty+d.DirtyBytes, read+d.ReadBytes
		}
		m.checkTidy()
	}
	h.ok("verify", "--data")
	t.Logf("%d incremental runs of 3 disks with 3 writers; %d MiB dirty, %d MiB read", runs, dirty/mib, read/mib)
}
