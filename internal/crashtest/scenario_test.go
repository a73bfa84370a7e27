package crashtest

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

// scenario is a backup in the middle of which the power is cut.
type scenario struct {
	disks   int      // 0: one
	options []string // of qemu-img create
	// prepare leaves the host as it is when the backup begins. nil: as newHost
	// leaves it.
	prepare func(t testing.TB, h *host)
	rescan  bool
	// mode and reason are those of the backup when nothing happens to it.
	mode   string
	reason agent.Reason
}

// someChanges are what a guest does between two points.
func someChanges() []change {
	return []change{
		{off: 0, n: 4096}, {off: 1<<20 + 512, n: 200 << 10}, {off: 2 << 20, n: 100 << 10}, {off: 4<<20 + 36<<10, n: 1024},
		{verb: "zero", off: 1500 << 10, n: 64 << 10},
	}
}

// oneMore makes a point, after which the guest writes.
func oneMore(t testing.TB, h *host) {
	t.Helper()
	h.mustBackup(t, how{boot: "boot-0"})
	for i := range h.disks {
		h.mustWrite(t, i, someChanges()...)
	}
}

func scenarioFirst() scenario { return scenario{mode: format.ModeFull, reason: agent.ReasonFirst} }

func scenarioIncremental() scenario {
	return scenario{mode: format.ModeIncremental, prepare: oneMore}
}

func scenarioTwoDisks() scenario {
	return scenario{mode: format.ModeIncremental, prepare: oneMore, disks: 2}
}

func scenarioTwoDisksFirst() scenario {
	return scenario{mode: format.ModeFull, reason: agent.ReasonFirst, disks: 2}
}

func scenarioSmallClusters() scenario {
	return scenario{mode: format.ModeIncremental, prepare: oneMore, options: []string{"cluster_size=512", "refcount_bits=1"}}
}

func scenarioAskedForRescan() scenario {
	return scenario{mode: format.ModeRescan, reason: agent.ReasonAsked, prepare: oneMore, rescan: true}
}

// scenarioSeveralBitmaps: two live runs died after they had frozen a bitmap and
// started another, and somebody else has a bitmap too.
func scenarioSeveralBitmaps() scenario {
	return scenario{mode: format.ModeIncremental, prepare: func(t testing.TB, h *host) {
		s := h.mustBackup(t, how{boot: "boot-0"})
		r, err := h.open(t.Context(), sim.NoSync{})
		if err != nil {
			t.Fatal(err)
		}
		m, _, err := r.Machine(t.Context(), machine)
		if err != nil {
			t.Fatal(err)
		}
		path := h.disks[0].path
		testtool.Run(t, "qemu-img", "bitmap", "--add", path, "somebody else's")
		frozen := ident.BitmapName{Family: m.ID.Family(), Stamp: s.Point}
		for i := range 2 {
			h.mustWrite(t, 0, someChanges()[i*2:i*2+2]...)
			h.clock = h.clock.Add(time.Minute)
			run, err := ident.NewRunID(h.clock, h.random)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.AbortRun(t.Context(), machine, m.ID, run, "a test"); err != nil {
				t.Fatal(err)
			}
			next := ident.BitmapName{Family: m.ID.Family(), Stamp: run, Prev: frozen.Stamp}
			testtool.Run(t, "qemu-img", "bitmap", "--disable", path, frozen.String())
			testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "65536", path, next.String())
			frozen = next
		}
		h.mustWrite(t, 0, someChanges()[4:]...)
	}}
}

// scenarioInUse: the host of the guest died.
func scenarioInUse() scenario {
	return scenario{mode: format.ModeRescan, reason: agent.ReasonInUse, prepare: func(t testing.TB, h *host) {
		oneMore(t, h)
		if err := h.write(t, 0, change{off: 2 << 20, n: 64 << 10}, change{off: 0, n: 512, ends: true}); err != nil {
			t.Fatal(err)
		}
	}}
}

// scenarioHidden: a program that knows no bitmaps wrote to the image.
func scenarioHidden() scenario {
	return scenario{mode: format.ModeRescan, reason: agent.ReasonAutoclear, prepare: func(t testing.TB, h *host) {
		oneMore(t, h)
		f, err := os.OpenFile(h.disks[0].path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// QEMU docs/interop/qcow2.txt, "Header": bytes 88 to 95 are the autoclear
		// features, bit 0 stands for the bitmaps.
		if _, err := f.WriteAt(make([]byte, 8), 88); err != nil {
			t.Fatal(err)
		}
	}}
}

func scenarioDiscard() scenario {
	return scenario{mode: format.ModeIncremental, prepare: func(t testing.TB, h *host) {
		h.mustBackup(t, how{boot: "boot-0"})
		h.mustWrite(t, 0, change{verb: "discard", off: 1 << 20, n: 640 << 10}, change{verb: "discard", off: 3008 << 10, n: 64 << 10}, change{off: 2500 << 10, n: 512})
	}}
}

// scenarioNotReset: power was cut before, between the record and the reset, so
// that the image continues a point that is not the newest.
func scenarioNotReset() scenario {
	return scenario{mode: format.ModeIncremental, prepare: func(t testing.TB, h *host) {
		oneMore(t, h)
		before, err := os.ReadFile(h.disks[0].path)
		if err != nil {
			t.Fatal(err)
		}
		log, s := h.record(t, false)
		if !bytes.Equal(before, log.After(sim.PowerCut{}).Images[h.disks[0].name]) {
			t.Fatal("the log does not begin with the image")
		}
		// All of the repository's effects, none of the image's.
		if err := h.put(log.After(sim.PowerCut{Done: firstOf(log, h.disks[0].name)}), true); err != nil {
			t.Fatal(err)
		}
		if runs, err := h.checkPoints(t.Context()); err != nil || len(runs) != 2 || runs[1] != s.Point {
			t.Fatal(runs, err)
		}
		h.mustWrite(t, 0, change{off: 2 << 20, n: 64 << 10}, change{off: 1 << 20, n: 512})
	}}
}

// firstOf returns the number of the first effect on a device.
func firstOf(log *sim.Log, device string) int {
	effects := log.Effects()
	for i, e := range effects {
		if e.Device == device {
			return i
		}
	}
	return len(effects)
}

// recorded is a scenario with its backup done and recorded.
type recorded struct {
	scenario
	host  *host
	log   *sim.Log
	point ident.RunID
	// before is what the disks held at first, by name.
	before map[string][]byte
	older  []ident.RunID // the points that were there before
}

func (s scenario) record(t testing.TB) *recorded {
	t.Helper()
	h := newHost(t, max(s.disks, 1), s.options...)
	if s.prepare != nil {
		s.prepare(t, h)
	}
	older, err := h.checkPoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	log, summary := h.record(t, s.rescan)
	for _, d := range summary.Disks {
		if d.Mode != s.mode || d.Reason != s.reason {
			t.Fatalf("the backup was %s (%s), want %s (%s)", d.Mode, d.Reason, s.mode, s.reason)
		}
	}
	if len(summary.NotReset)+len(summary.Alarms) > 0 {
		t.Fatalf("the backup ended with %+v, %+v", summary.NotReset, summary.Alarms)
	}
	if _, err := h.checkPoints(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &recorded{scenario: s, host: h, log: log, point: summary.Point, before: log.After(sim.PowerCut{}).Images, older: older}
}
