package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
)

const ghostMiB = 1 << 20

func TestAFullBackupIsFollowedByIncrements(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", 3*ghostMiB+12345, 1), newGhostDisk("vdb", ghostMiB, 2))
	w.guest(5)
	s := w.mustBackup()
	wantModes(t, s, first, first)
	for range 8 {
		w.guest(2)
		before := s.Point
		s = w.mustBackup()
		wantModes(t, s, incremental, incremental)
		wantAlarms(t, s)
		for _, d := range s.Disks {
			if d.Base != before || d.ReadBytes > d.DirtyBytes || d.DirtyBytes == 0 || d.DirtyBytes > d.SizeBytes+ghostGranularity {
				t.Errorf("disk is %+v", d)
			}
		}
	}
	s = w.mustBackup()
	wantModes(t, s, incremental, incremental)
	for _, d := range s.Disks {
		if d.DirtyBytes+d.ReadBytes+d.StoredBytes != 0 {
			t.Errorf("nothing was written, yet %+v", d)
		}
	}
	if n := w.check(); n != 10 {
		t.Fatalf("%d points, want 10", n)
	}
}

func TestWhatTheGuestZeroedIsZeroInThePointAndCostsNothing(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", 2*ghostMiB, 1))
	w.guest(20)
	w.mustBackup()
	w.disks[0].write(0, make([]byte, 2*ghostMiB))
	s := w.mustBackup()
	wantModes(t, s, incremental)
	if d := s.Disks[0]; d.ZeroBytes != 2*ghostMiB || d.StoredBytes != 0 {
		t.Fatalf("disk is %+v", d)
	}
	w.check()
}

func TestTheSummaryHasItsDocumentedShape(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(1)
	w.mustBackup()
	w.readers["vda"] = true
	s := w.mustBackup(func(j *Job, o *Options) { j.Rescan = true })
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"message_type", "machine", "point", "disks", "duration_seconds", "not_reset"} {
		if _, found := got[key]; !found {
			t.Errorf("no %q in %s", key, raw)
		}
	}
	disk := got["disks"].([]any)[0].(map[string]any)
	for _, key := range []string{"name", "mode", "reason", "size_bytes", "dirty_bytes", "read_bytes", "zero_bytes", "skipped_bytes", "stored_bytes"} {
		if _, found := disk[key]; !found {
			t.Errorf("no %q in %s", key, raw)
		}
	}
	if got["message_type"] != "summary" || got["machine"] != "web" || disk["mode"] != "rescan" || disk["reason"] != "asked for" {
		t.Errorf("summary is %s", raw)
	}
}

func TestARescanStoresOnlyWhatDiffers(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", 4*ghostMiB, 1))
	w.guest(30)
	w.mustBackup()
	w.disks[0].bitmaps = nil
	w.disks[0].write(ghostMiB+5, []byte("changed"))
	s := w.mustBackup()
	wantModes(t, s, rescanBecause(ReasonNoBitmap))
	if d := s.Disks[0]; d.StoredBytes == 0 || d.StoredBytes > 2*testBlockBytes || d.SkippedBytes == 0 {
		t.Fatalf("disk is %+v", d)
	}
	w.guest(1)
	wantModes(t, w.mustBackup(), incremental)
	w.check()
}

func TestAGrownDiskStaysIncremental(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB+777, 1))
	w.guest(5)
	w.mustBackup()
	w.disks[0].resize(2*ghostMiB + 99)
	w.disks[0].write(2*ghostMiB, []byte("tail"))
	wantModes(t, w.mustBackup(), incremental)
	w.disks[0].resize(ghostMiB)
	wantModes(t, w.mustBackup(), rescanBecause(ReasonShrank))
	w.check()
}

func TestBitsThatWereNotResetAreReadAgain(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.mustBackup()
	w.guest(1)
	w.readers["vda"] = true
	s := w.mustBackup()
	if len(s.NotReset) != 1 || s.NotReset[0].Disk != "vda" || !strings.Contains(s.NotReset[0].Error, source.ErrReaders.Error()) {
		t.Fatalf("not reset: %+v", s.NotReset)
	}
	w.readers["vda"] = false
	s = w.mustBackup()
	wantModes(t, s, incremental)
	wantAlarms(t, s)
	if s.Disks[0].DirtyBytes == 0 || len(s.NotReset) > 0 {
		t.Fatalf("summary is %+v", s)
	}
	w.check()
}

func TestABitmapThatLiesIsFoundBySamplesAndEverythingIsReadAgain(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1), newGhostDisk("vdb", ghostMiB, 2))
	for _, d := range w.disks {
		p := make([]byte, ghostMiB)
		_, _ = w.seed.Read(p)
		d.write(0, p)
	}
	w.mustBackup()
	for off := 0; off < ghostMiB; off += testBlockBytes {
		w.disks[1].writeSilently(off, []byte("silent"))
	}
	s := w.mustBackup()
	wantModes(t, s, incremental, rescanBecause(ReasonSample))
	wantAlarms(t, s, AlarmSample)
	if n := w.check(); n != 2 {
		t.Fatalf("%d points, want 2: the increment that lied must not be one", n)
	}
	wantModes(t, w.mustBackup(), incremental, incremental)
}

func TestSwappedClonesAreToldApart(t *testing.T) {
	a := newGhostDisk("vda", 2*ghostMiB, 1)
	p := make([]byte, 2*ghostMiB)
	b := newGhostDisk("vdb", 2*ghostMiB, 2)
	w := newWorld(t, a, b)
	_, _ = w.seed.Read(p)
	a.write(0, p)
	b.write(0, p)
	// The clones differ in one block only.
	b.write(17*testBlockBytes, []byte("b"))
	w.mustBackup()
	wantModes(t, w.mustBackup(), incremental, incremental)
	a.name, b.name = "vdb", "vda"
	w.disks = []*ghostDisk{b, a}
	s := w.mustBackup()
	wantModes(t, s, rescanBecause(ReasonSwapped), rescanBecause(ReasonSwapped))
	wantAlarms(t, s, AlarmSwapped, AlarmSwapped)
	w.check()
}

func TestASwappedDiskIsFoundWhenTheOtherIsNotBackedUp(t *testing.T) {
	a, b := newGhostDisk("vda", 20*ghostMiB, 1), newGhostDisk("vdb", 20*ghostMiB, 2)
	w := newWorld(t, a, b)
	same := make([]byte, 20*ghostMiB)
	_, _ = w.seed.Read(same)
	a.write(0, same)
	b.write(0, same)
	b.write(7*ghostMiB, []byte("only here"))
	w.mustBackup()
	b.write(0, []byte("new"))
	b.name, w.disks = "vda", []*ghostDisk{b}
	s := w.mustBackup()
	wantModes(t, s, rescanBecause(ReasonSwapped))
	wantAlarms(t, s, AlarmDiskGone, AlarmSwapped)
	w.check()
}

func TestADiskThatWasMadeSmallerAndLargerAgainIsFound(t *testing.T) {
	const size = 20*ghostMiB + 777
	for name, lost := range map[string]int{"the end of the last block": 500, "a block and a half": 100_000} {
		t.Run(name, func(t *testing.T) {
			d := newGhostDisk("vda", size, 1)
			w := newWorld(t, d)
			p := make([]byte, size)
			_, _ = w.seed.Read(p)
			d.write(0, p)
			w.mustBackup()
			d.resize(size - lost)
			d.resize(size)
			d.write(ghostMiB, []byte("a bit is set"))
			s := w.mustBackup()
			wantModes(t, s, rescanBecause(ReasonSample))
			wantAlarms(t, s, AlarmSample)
			w.check()
		})
	}
}

func TestAMovedImageOfASingleDiskStaysIncremental(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(5)
	w.mustBackup()
	w.disks[0].inode = 99
	s := w.mustBackup()
	wantModes(t, s, incremental)
	wantAlarms(t, s)
}

func TestAnOlderCopyOfAnImageForksFromItsOwnPoint(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(5)
	old := w.mustBackup()
	for _, host := range []string{"host-a", "host-b"} {
		saved := w.disks[0].clone()
		w.guest(2)
		w.mustBackup()
		w.guest(2)
		w.mustBackup()
		w.disks[0] = saved
		w.guest(1)
		if host != w.host {
			w.stateDir, w.host = t.TempDir(), host
		}
		s := w.mustBackup()
		wantModes(t, s, incremental)
		wantAlarms(t, s, AlarmImageRolledBack)
		if s.Disks[0].Base != old.Point {
			t.Fatalf("%s: base is %s, want %s", host, s.Disks[0].Base, old.Point)
		}
		old = s
	}
	w.check()
}

func TestARepositoryThatLostItsNewestPointRaisesAnAlarm(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(5)
	w.mustBackup()
	w.guest(1)
	lost := w.mustBackup()
	for _, key := range []string{format.PointKey("web", lost.Point), format.IntentKey("web", lost.Point, 0), format.ManifestKey("web", lost.Point)} {
		if err := w.mem.Delete(t.Context(), []string{key}); err != nil {
			t.Fatal(err)
		}
	}
	for info := range w.mem.List(t.Context(), format.DataPrefix("web", lost.Point)) {
		_ = w.mem.Delete(t.Context(), []string{info.Key})
	}
	w.guest(1)
	s := w.mustBackup()
	wantModes(t, s, rescanBecause(ReasonUnknownStamp))
	wantAlarms(t, s, AlarmRepositoryRolledBack, AlarmRepositoryRolledBack)
	wantModes(t, w.mustBackup(), incremental)
	w.check()
}

func TestAForgottenBaseIsNotBuiltOn(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(5)
	kept := w.mustBackup()
	w.guest(1)
	gone := w.mustBackup()
	w.forget(gone.Point)
	s := w.mustBackup()
	wantModes(t, s, rescanBecause(ReasonForgotten))
	if s.Disks[0].Base != (ident.RunID{}) || kept.Point == s.Point {
		t.Fatalf("summary is %+v", s)
	}
	w.check()
}

// forget puts a tombstone, as prune does.
func (w *world) forget(run ident.RunID) {
	w.t.Helper()
	w.forgetThrough(w.mem, run)
}

func (w *world) forgetThrough(s store.Store, run ident.RunID) {
	w.t.Helper()
	raw, err := format.AppendMark(nil, format.KindTombstone, &format.Mark{Identity: w.identity(run), Nonce: format.Nonce{1}, By: "test", Time: w.clock})
	if err != nil {
		w.t.Fatal(err)
	}
	err = s.Put(w.t.Context(), format.TombstoneKey("web", run, 0), store.NewBody(raw), store.PutOptions{})
	if err != nil && !errors.Is(err, store.ErrTransient) {
		w.t.Fatal(err)
	}
}

func (w *world) identity(run ident.RunID) format.Identity {
	w.t.Helper()
	r, err := repo.Open(w.t.Context(), w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	m, _, err := r.Machine(w.t.Context(), "web")
	if err != nil {
		w.t.Fatal(err)
	}
	return format.Identity{Repository: r.ID(), Machine: "web", MachineID: m.ID, Run: run}
}

func TestADamagedBaseIsReplacedByARescan(t *testing.T) {
	for name, damage := range map[string]func(w *world, run ident.RunID) string{
		"record":   func(w *world, run ident.RunID) string { return format.PointKey("web", run) },
		"manifest": func(w *world, run ident.RunID) string { return format.ManifestKey("web", run) },
		"map":      func(w *world, run ident.RunID) string { return format.MapKey("web", run, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
			w.guest(5)
			w.mustBackup()
			w.guest(5)
			bad := w.mustBackup()
			key := damage(w, bad.Point)
			b, err := store.ReadAll(t.Context(), w.mem, key, 1<<30)
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			sound := append([]byte(nil), b...)
			b[len(b)*2/3] ^= 1
			w.mem.Replace(key, b)
			w.guest(1)
			s := w.mustBackup()
			wantModes(t, s, rescanBecause(ReasonBaseDamaged))
			if len(s.Alarms) == 0 || s.Alarms[0].Kind != AlarmDamage {
				t.Errorf("alarms: %+v", s.Alarms)
			}
			wantModes(t, w.mustBackup(), incremental)
			w.mem.Replace(key, sound)
			w.check()
		})
	}
}

func TestADiskThatCannotBeInspectedIsMissingInThePoint(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1), newGhostDisk("vdb", ghostMiB, 2))
	w.guest(2)
	w.mustBackup()
	bad := errors.New("header is torn")
	w.disks[1].err = &source.UsableError{Path: "/vm/vdb", Err: bad}
	w.guest(2)
	s, err := w.backup()
	wantError(t, err, ErrSomeFailed)
	wantError(t, err, bad)
	if s.Point.IsZero() {
		t.Fatal("no point was made")
	}
	wantModes(t, s, incremental, format.ModeMissing)
	if !strings.Contains(s.Disks[1].Error, "torn") {
		t.Errorf("disk is %+v", s.Disks[1])
	}
	w.disks[1].err = nil
	s = w.mustBackup()
	wantModes(t, s, incremental, incremental)
	wantAlarms(t, s)
	w.disks[0].err, w.disks[1].err = bad, bad
	if _, err = w.backup(); errors.Is(err, ErrSomeFailed) || !errors.Is(err, bad) {
		t.Fatalf("without any disk: %v", err)
	}
	w.check()
}

func TestADiskThatIsNoLongerGivenIsSaidOnce(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1), newGhostDisk("vdb", ghostMiB, 2))
	w.guest(2)
	w.mustBackup()
	w.disks = w.disks[:1]
	s := w.mustBackup()
	wantModes(t, s, incremental)
	wantAlarms(t, s, AlarmDiskGone)
	if s.Alarms[0].Disk != "vdb" {
		t.Errorf("%+v", s.Alarms[0])
	}
	wantAlarms(t, w.mustBackup())
	w.check()
}

func TestAnImageHeldByAMachineFailsTheWholeMachine(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1), newGhostDisk("vdb", ghostMiB, 2))
	w.disks[1].err = &source.HeldError{Path: "/vm/vdb"}
	s, err := w.backup()
	wantError(t, err, source.ErrHeld)
	if !s.Point.IsZero() || errors.Is(err, ErrSomeFailed) || w.check() != 0 {
		t.Fatalf("summary is %+v", s)
	}
}

func TestADiskWithABadSectorIsLeftOutAndTheOthersAreSaved(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1), newGhostDisk("vdb", ghostMiB, 2))
	w.guest(3)
	w.disks[0].readErr = errors.New("bad sector")
	s, err := w.backup()
	wantError(t, err, ErrSomeFailed)
	wantModes(t, s, format.ModeMissing, first)
	if n := w.check(); n != 1 {
		t.Fatalf("%d points, want 1", n)
	}
	w.disks[1].readErr = errors.New("bad sector too")
	if _, err := w.backup(); err == nil || errors.Is(err, ErrSomeFailed) {
		t.Fatalf("without any disk: %v", err)
	}
}

func TestAMachineThatStartsWhileItIsReadEndsTheRun(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1), newGhostDisk("vdb", ghostMiB, 2))
	w.guest(3)
	w.mustBackup()
	w.guest(3)
	for name, start := range map[string]func(){
		"in a read":    func() { w.disks[0].readErr = source.ErrVMStarted },
		"at the end":   func() { w.confirm = source.ErrVMStarted },
		"at the start": func() { w.freeze = source.ErrChanged },
	} {
		t.Run(name, func(t *testing.T) {
			start()
			s, err := w.backup()
			w.disks[0].readErr, w.confirm, w.freeze = nil, nil, nil
			if !errors.Is(err, source.ErrVMStarted) && !errors.Is(err, source.ErrChanged) || !s.Point.IsZero() {
				t.Fatalf("%+v, %v", s, err)
			}
			if n := w.check(); n != 1 {
				t.Fatalf("%d points, want 1", n)
			}
		})
	}
	s := w.mustBackup()
	wantModes(t, s, incremental, incremental)
	wantAlarms(t, s)
	w.check()
}

func TestADryRunWritesNothingAnywhere(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(3)
	dry := func(j *Job, o *Options) { j.DryRun = true }
	for range 2 {
		puts := w.store.Calls(fault.Put)
		files := w.stateFiles()
		s, err := w.backup(dry)
		if err != nil || !s.Point.IsZero() || !s.DryRun || len(s.Disks) != 1 {
			t.Fatalf("%+v, %v", s, err)
		}
		if w.store.Calls(fault.Put) != puts || w.stateFiles() != files {
			t.Fatalf("a dry run wrote: %d puts, files %q, then %q", w.store.Calls(fault.Put)-puts, files, w.stateFiles())
		}
		w.mustBackup()
		w.disks[0].write(0, []byte("x"))
		if s, err := w.backup(dry); err != nil || s.Disks[0].Mode != incremental || s.Disks[0].DirtyBytes != ghostGranularity {
			t.Fatalf("%+v, %v", s, err)
		}
	}
}

func (w *world) stateFiles() string {
	var b strings.Builder
	_ = filepath.Walk(w.stateDir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			raw, _ := os.ReadFile(path)
			fmt.Fprintf(&b, "%s: %s\n", path, raw)
		}
		return nil
	})
	return b.String()
}

func TestALockedMachineIsBusy(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	_, err := w.backup(func(j *Job, o *Options) {
		unlock, err := j.State.Machine("web").Lock(w.clock)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(unlock)
	})
	wantError(t, err, state.ErrBusy)
}

func TestAJobThatLacksSomethingIsRefused(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	for _, change := range []func(*Job, *Options){
		func(j *Job, o *Options) { j.Machine = "" },
		func(j *Job, o *Options) { j.Open = nil },
		func(j *Job, o *Options) { j.Repository = nil },
		func(j *Job, o *Options) { j.State = nil },
	} {
		if _, err := w.backup(change); !errors.Is(err, ErrJob) {
			t.Errorf("got %v", err)
		}
	}
	w.disks = nil
	if _, err := w.backup(); !errors.Is(err, ErrJob) {
		t.Errorf("without disks: %v", err)
	}
}

func TestALongUploadSaysThatItLives(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(20)
	slow := func(j *Job, o *Options) {
		o.RenewEvery = time.Millisecond
		open := j.Open
		j.Open = func(f ident.FamilyID) source.Machine { return slowMachine{open(f)} }
	}
	s := w.mustBackup(slow)
	renewals := 0
	for info, err := range w.mem.List(t.Context(), format.RunsPrefix("web")+s.Point.String()+".") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Size == 0 {
			t.Error("an empty renewal")
		}
		renewals++
	}
	if renewals == 0 {
		t.Fatal("no renewal")
	}
	w.check()
}

func TestAMapIsWrittenAnewAfterManyRuns(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(5)
	w.mustBackup()
	highest, rewritten := 0, false
	for range rewriteAfter + 4 {
		w.disks[0].write(w.rng.IntN(ghostMiB-10), []byte("change"))
		s := w.mustBackup()
		wantModes(t, s, incremental)
		r, err := repo.Open(t.Context(), w.mem, w.repoOptions())
		if err != nil {
			t.Fatal(err)
		}
		point, err := r.OpenPoint(t.Context(), "web", s.Point)
		if err != nil {
			t.Fatal(err)
		}
		n := point.Record().Disks[0].Map.RunsSinceRewrite
		rewritten = rewritten || n < highest
		highest = max(highest, n)
	}
	if !rewritten || highest > rewriteAfter {
		t.Fatalf("rewritten: %v; highest count %d", rewritten, highest)
	}
	w.check()
}

func TestTheStatsCanBeReadAtAnyTime(t *testing.T) {
	w := newWorld(t, newGhostDisk("vda", ghostMiB, 1))
	w.guest(3)
	stats := &Stats{}
	w.mustBackup(func(j *Job, o *Options) { o.Stats = stats })
	if d := stats.Disks(); stats.Phase() != PhaseDone || len(d) != 1 || d[0].Mode != format.ModeFull || d[0].Stats.Read.Load() == 0 {
		t.Fatalf("phase %s, disks %+v", stats.Phase(), d)
	}
}
