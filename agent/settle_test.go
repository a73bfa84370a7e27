package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
)

// slot reads a run's slot from the healthy repository.
func (w *world) slot(run ident.RunID) repo.Slot {
	w.t.Helper()
	r, err := repo.Open(w.t.Context(), w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := r.Slot(w.t.Context(), "web", run)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// liveRun plays a live run of some host that froze the family and is under way,
// or died: its intent is there, its bitmap records, its slot is empty.
func (w *world) liveRun(host, boot string) ident.RunID {
	w.t.Helper()
	r, err := repo.Open(w.t.Context(), w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	m, _, err := r.Machine(w.t.Context(), "web")
	if err != nil {
		w.t.Fatal(err)
	}
	run, err := r.Begin(w.t.Context(), repo.IntentSpec{Machine: "web", MachineID: m.ID, Host: host, BootID: boot, Tool: "test"})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range w.disks {
		old := &d.bitmaps[0]
		name, _ := ident.ParseBitmapName(old.name)
		old.recording = false
		d.bitmaps = append(d.bitmaps, ghostBitmap{
			name:      ident.BitmapName{Family: m.ID.Family(), Stamp: run.ID(), Prev: name.Stamp}.String(),
			recording: true, dirty: make([]bool, d.granules()),
		})
	}
	return run.ID()
}

func TestARunOfAnotherHostIsBusyUntilItWasSilentForTwoHours(t *testing.T) {
	w := crashWorld(t)
	run := w.liveRun("host-b", "boot-b")
	w.guest(1)
	s, err := w.backup()
	wantError(t, err, ErrRunning)
	if !strings.Contains(err.Error(), "host-b") || !strings.Contains(err.Error(), run.String()) || !s.Point.IsZero() {
		t.Fatalf("error is %q", err)
	}
	w.clock = w.clock.Add(silence - 3*time.Minute)
	if _, err = w.backup(); err == nil {
		t.Fatal("the run counts as dead too early")
	}
	// A renewal is a sign of life.
	w.renew(run)
	w.clock = w.clock.Add(30 * time.Minute)
	_, err = w.backup()
	wantError(t, err, ErrRunning)
	w.clock = w.clock.Add(silence)
	s = w.mustBackup()
	wantModes(t, s, incremental, incremental)
	wantAlarms(t, s)
	if state := w.slot(run).State; state != repo.SlotAborted {
		t.Fatalf("slot of the dead run is %s", state)
	}
	w.recover()
}

// renew stores a renewal of a run's intent.
func (w *world) renew(run ident.RunID) {
	w.t.Helper()
	if err := w.mem.Put(w.t.Context(), format.IntentKey("web", run, 1), store.NewBody([]byte("lives")), store.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestARunOfThisHostBeforeItsRestartIsDeadAtOnce(t *testing.T) {
	w := crashWorld(t)
	run := w.liveRun(w.host, "boot-0")
	w.guest(1)
	s := w.mustBackup()
	wantModes(t, s, incremental, incremental)
	if state := w.slot(run).State; state != repo.SlotAborted {
		t.Fatalf("slot of the dead run is %s", state)
	}
	w.recover()
}

func TestARunOfThisHostWithAnotherStateDirectoryMayBeAlive(t *testing.T) {
	w := crashWorld(t)
	w.liveRun(w.host, w.boot)
	_, err := w.backup()
	wantError(t, err, ErrRunning)
}

func TestARunOfThisHostsJournalIsDeadBecauseWeHoldTheLock(t *testing.T) {
	w := crashWorld(t)
	run := w.liveRun(w.host, w.boot)
	j := w.journal()
	s, err := state.Open(w.stateDir, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), w.mem, w.repoOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Repository(r.ID()).Machine("web").Begin(j.MachineID, state.Run{Run: run, Host: w.host, BootID: w.boot}); err != nil {
		t.Fatal(err)
	}
	w.guest(1)
	wantModes(t, w.mustBackup(), incremental, incremental)
	if state := w.slot(run).State; state != repo.SlotAborted {
		t.Fatalf("slot of the dead run is %s", state)
	}
}

func TestOnAStoreThatOverwritesNoSlotIsTaken(t *testing.T) {
	w := crashWorld(t)
	w.store.Add(fault.Rule{Verb: fault.Put, Prefix: format.DataPrefix("web", ident.RunID{})[:len("data/web/")], Err: store.ErrUnreachable})
	careful := func(j *Job, o *Options) {
		if err := j.State.SaveProbe(state.Probe{CreateOnly: false}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.backup(careful); err == nil {
		t.Fatal("the run did not fail")
	}
	failed := w.journal().Last.Run
	w.store.Clear()
	s := w.mustBackup(careful)
	wantModes(t, s, incremental, incremental)
	wantAlarms(t, s, AlarmCreateOnly)
	if state := w.slot(failed).State; state != repo.SlotAbsent {
		t.Fatalf("slot is %s", state)
	}
	w.check()
}

func TestADryRunReportsAndTakesNoSlot(t *testing.T) {
	w := crashWorld(t)
	run := w.liveRun(w.host, "boot-0")
	s, err := w.backup(func(j *Job, o *Options) { j.DryRun = true })
	if err != nil {
		t.Fatal(err)
	}
	wantModes(t, s, incremental, incremental)
	if state := w.slot(run).State; state != repo.SlotAbsent {
		t.Fatalf("slot is %s", state)
	}
}

// elsewhere makes the next backup come from a host that knows nothing.
func (w *world) elsewhere() {
	w.stateDir, w.host, w.boot = w.t.TempDir(), "host-b", "boot-b"
}

func dropBitmaps(w *world) {
	for _, d := range w.disks {
		d.bitmaps = nil
	}
}

func TestAMachineNameIsTakenOverOnEvidenceOnly(t *testing.T) {
	world := func(t *testing.T) *world {
		w := newWorld(t, newGhostDisk("vda", 20*testBlockBytes, 1))
		p := make([]byte, 20*testBlockBytes)
		_, _ = w.seed.Read(p)
		w.disks[0].write(0, p)
		w.mustBackup()
		w.elsewhere()
		return w
	}
	t.Run("by its bitmaps, even in use", func(t *testing.T) {
		w := world(t)
		w.disks[0].bitmaps[0].inUse = true
		w.disks[0].writeSilently(0, make([]byte, 20*testBlockBytes))
		wantModes(t, w.mustBackup(), rescanBecause(ReasonInUse))
		w.check()
	})
	t.Run("by half of its blocks", func(t *testing.T) {
		w := world(t)
		dropBitmaps(w)
		w.disks[0].writeSilently(0, make([]byte, 6*testBlockBytes))
		wantModes(t, w.mustBackup(), rescanBecause(ReasonNoBitmap))
		w.check()
	})
	t.Run("not by fewer", func(t *testing.T) {
		w := world(t)
		dropBitmaps(w)
		w.disks[0].writeSilently(0, make([]byte, 14*testBlockBytes))
		s, err := w.backup()
		wantError(t, err, ErrOtherMachine)
		if !strings.Contains(err.Error(), "--adopt") || !strings.Contains(err.Error(), "host-a") || !s.Point.IsZero() {
			t.Fatalf("error is %q", err)
		}
		// That this host has tried shows nothing.
		_, err = w.backup()
		wantError(t, err, ErrOtherMachine)
		wantModes(t, w.mustBackup(func(j *Job, o *Options) { j.Adopt = true }), rescanBecause(ReasonNoBitmap))
		w.disks[0].bitmaps = nil
		// By now this host remembers the machine.
		wantModes(t, w.mustBackup(), rescanBecause(ReasonNoBitmap))
		w.check()
	})
	t.Run("not by another set of disks", func(t *testing.T) {
		w := world(t)
		w.disks = []*ghostDisk{newGhostDisk("vdz", testBlockBytes, 9)}
		_, err := w.backup()
		wantError(t, err, ErrOtherMachine)
	})
	t.Run("not when the newest point is all zeros", func(t *testing.T) {
		w := newWorld(t, newGhostDisk("vda", 20*testBlockBytes, 1))
		w.mustBackup()
		w.elsewhere()
		dropBitmaps(w)
		_, err := w.backup()
		wantError(t, err, ErrOtherMachine)
	})
	for name, puts := range map[string]int{"freely when it has no point": fault.Forever, "freely when it has failed runs only": 1} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newGhostDisk("vda", 20*testBlockBytes, 1))
			w.store.Add(fault.Rule{Verb: fault.Put, Prefix: "points/", Err: store.ErrDenied, Count: puts})
			_, err := w.backup()
			wantError(t, err, store.ErrDenied)
			w.store.Clear()
			w.elsewhere()
			wantModes(t, w.mustBackup(), first)
		})
	}
}

func TestTwoRepositoriesKeepTwoFamilies(t *testing.T) {
	a := newWorld(t, newGhostDisk("vda", 5*testBlockBytes, 1))
	b := newWorld(t)
	b.disks = a.disks
	_, _ = b.seed.Read(make([]byte, 100)) // other random ids
	a.guest(2)
	wantModes(t, a.mustBackup(), first)
	wantModes(t, b.mustBackup(), first)
	for range 3 {
		a.guest(1)
		wantModes(t, a.mustBackup(), incremental)
		a.guest(1)
		wantModes(t, a.mustBackup(), incremental)
		wantModes(t, b.mustBackup(), incremental)
	}
	a.check()
	b.check()
	if n := len(a.disks[0].bitmaps); n != 2 {
		t.Fatalf("%d bitmaps in the image, want 2", n)
	}
}

func TestABaseThatIsForgottenWhileTheRunBeginsIsGivenUp(t *testing.T) {
	givenUp := 0
	for delay := range 16 {
		w := crashWorld(t)
		base := w.journal().Committed
		w.store.Add(fault.Rule{Verb: fault.Put, Prefix: "forgotten/", Kind: fault.Late, Delay: delay + 1})
		w.forgetThrough(w.store, base)
		s := w.mustBackup()
		for _, d := range s.Disks {
			if d.Mode == format.ModeRescan && d.Reason != ReasonForgotten {
				t.Errorf("tombstone after %d calls: disk is %+v", delay, d)
			}
			if d.Mode == format.ModeRescan {
				givenUp++
			}
		}
		w.recover()
	}
	if givenUp == 0 {
		t.Error("the base was never given up")
	}
}

func TestWhatAVerificationCondemnedIsStoredAgain(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", 20*testBlockBytes, 1))
	p := make([]byte, 20*testBlockBytes)
	_, _ = w.seed.Read(p)
	w.disks[0].write(0, p)
	old := w.mustBackup()
	w.disks[0].write(0, []byte("x"))
	w.mustBackup()
	w.condemn(old.Point, format.PackKey("web", old.Point, 0))
	s := w.mustBackup()
	wantModes(t, s, rescanBecause(ReasonBaseDamaged))
	wantAlarms(t, s, AlarmDamage)
	if d := s.Disks[0]; d.StoredBytes < 19*testBlockBytes || d.SkippedBytes != testBlockBytes {
		t.Errorf("disk is %+v", d)
	}
	s = w.mustBackup()
	wantModes(t, s, incremental)
	wantAlarms(t, s)
	// The new points do not need the condemned pack.
	w.mem.Replace(format.PackKey("web", old.Point, 0), []byte("spoiled"))
	w.forget(old.Point)
	for _, run := range w.points() {
		if _, known := w.truth[run]; known && run.Compare(s.Point) < 0 && w.dependsOn(run, old.Point) {
			w.forget(run)
		}
	}
	if n := w.check(); n != 2 {
		t.Errorf("%d points, want 2", n)
	}
}

// points lists the runs with a point.
func (w *world) points() []ident.RunID {
	w.t.Helper()
	r, err := repo.Open(w.t.Context(), w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	list, err := r.Points(w.t.Context(), "web")
	if err != nil {
		w.t.Fatal(err)
	}
	var runs []ident.RunID
	for _, p := range list {
		runs = append(runs, p.Run)
	}
	return runs
}

// dependsOn tells whether a point's manifest names another run.
func (w *world) dependsOn(run, other ident.RunID) bool {
	w.t.Helper()
	r, err := repo.Open(w.t.Context(), w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := r.OpenPoint(w.t.Context(), "web", run)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range p.Dependencies() {
		if d.Run == other {
			return true
		}
	}
	return false
}

// condemn stores the verdict of a verification.
func (w *world) condemn(run ident.RunID, key string) {
	w.t.Helper()
	raw, err := format.AppendVerdict(nil, &format.Verdict{
		Identity: w.identity(run), Level: "data", Time: w.clock, Damage: []format.Finding{{Key: key, Offset: -1, Error: "spoiled"}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.mem.Put(w.t.Context(), format.VerdictKey("web", run, 0), store.NewBody(raw), store.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}
