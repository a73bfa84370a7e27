package repo

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
)

func TestPointsAreListedByTimeWithoutAbortedAndForgottenOnes(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	points := threePoints(w)
	dead, err := w.begin(ctx, points[2])
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.run.Abort(ctx, "a test"); err != nil {
		t.Fatal(err)
	}
	w.forget(points[1].record.Run)
	put(t, w.mem, format.PointsPrefix(testMachine)+"odd", "x")
	list, err := w.repo.Points(ctx, testMachine)
	if err != nil {
		t.Fatal(err)
	}
	var runs []ident.RunID
	for _, p := range list {
		runs = append(runs, p.Run)
		if p.Err != nil || p.Record.Disk("root") == nil || p.Bytes == 0 || !p.Time().Equal(p.Record.Time) {
			t.Errorf("point %+v", p)
		}
	}
	if want := []ident.RunID{points[0].record.Run, points[2].record.Run}; !slices.Equal(runs, want) {
		t.Errorf("points %v, want %v", runs, want)
	}
	if list, err := w.repo.Points(ctx, "db"); err != nil || len(list) != 0 {
		t.Errorf("points of nobody: %v, %v", list, err)
	}
	for run, want := range map[ident.RunID]error{points[1].record.Run: ErrForgotten, dead.run.ID(): ErrAborted, {5}: ErrNoPoint} {
		if _, err := w.repo.OpenPoint(ctx, testMachine, run); !errors.Is(err, want) || !errors.Is(err, ErrNoPoint) {
			t.Errorf("open %s: %v, want %v", run, err, want)
		}
	}
}

func TestADamagedRecordIsListedAsDamaged(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	points := threePoints(w)
	run := points[1].record.Run
	defer w.flip(format.PointKey(testMachine, run), 40)()
	list, err := w.repo.Points(ctx, testMachine)
	if err != nil || len(list) != 3 {
		t.Fatalf("%d points, %v", len(list), err)
	}
	for _, p := range list {
		if damaged := p.Run == run; damaged != (p.Err != nil) || damaged && (!errors.Is(p.Err, ErrDamaged) || !p.Time().Equal(run.Time())) {
			t.Errorf("point %s: %v", p.Run, p.Err)
		}
	}
}

func TestListingNeedsEveryAnswer(t *testing.T) {
	w := newWorld(t)
	threePoints(w)
	for n := 1; n <= 5; n++ {
		w.repo.store = fault.New(w.mem, 1, fault.Down(n))
		if list, err := w.repo.Points(context.Background(), testMachine); !errors.Is(err, store.ErrUnreachable) || list != nil {
			t.Errorf("down from call %d on: %d points, %v", n, len(list), err)
		}
	}
}

func TestDisksThatWereNotCapturedCannotBeOpened(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, err := w.begin(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.upload(ctx, 3*testBlock, change{0, 3, 1}); err != nil {
		t.Fatal(err)
	}
	a.record.Disks = append(a.record.Disks, format.DiskRecord{Name: "data", Ordinal: 1, Mode: format.ModeMissing, Error: "held by a VM"})
	if err := a.run.Publish(ctx, a.record); err != nil {
		t.Fatal(err)
	}
	p := w.open(a.run.ID())
	for _, name := range []string{"data", "swap"} {
		if _, err := p.Disk(name); !errors.Is(err, ErrNoDisk) {
			t.Errorf("disk %s: %v", name, err)
		}
	}
	if _, err := p.Disk("root"); err != nil {
		t.Error(err)
	}
}

func TestDependenciesNameEveryRunOnce(t *testing.T) {
	w := newWorld(t)
	points := threePoints(w)
	deps := points[2].Dependencies()
	var runs []ident.RunID
	for _, d := range deps {
		runs = append(runs, d.Run)
	}
	want := []ident.RunID{points[0].record.Run, points[1].record.Run, points[2].record.Run}
	if !slices.Equal(runs, want) {
		t.Fatalf("runs %v, want %v", runs, want)
	}
	joined, err := JoinDependencies(deps, points[1].Dependencies(), nil)
	if err != nil || !slices.Equal(joined, deps) {
		t.Errorf("joined %v, %v", joined, err)
	}
	wrong := []format.Dependency{{Run: runs[0], Manifest: format.Hash{1}}}
	if _, err := JoinDependencies(deps, wrong); !errors.Is(err, ErrDamaged) {
		t.Errorf("two hashes of one manifest: %v", err)
	}
	picked, err := PickDependencies(deps, runs[1:])
	if err != nil || !slices.Equal(picked, deps[1:]) {
		t.Errorf("picked %v, %v", picked, err)
	}
	if _, err := PickDependencies(deps[1:], runs); !errors.Is(err, ErrDamaged) {
		t.Errorf("a run that is not known: %v", err)
	}
	d, err := points[2].Disk("root")
	if err != nil {
		t.Fatal(err)
	}
	u, err := d.Map().Measure(context.Background())
	if err != nil || !slices.Equal(u.Runs, want) {
		t.Errorf("the map uses %v, %v", u.Runs, err)
	}
}

func TestAMissingManifestOfADependencyIsNamed(t *testing.T) {
	w := newWorld(t)
	points := threePoints(w)
	key := format.ManifestKey(testMachine, points[0].record.Run)
	if err := w.mem.Delete(context.Background(), []string{key}); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	err := w.compare(points[2].record.Run)
	damage, ok := asDamage(err)
	if !ok || damage.Key != key || len(damage.Extents) == 0 || damage.Disk != "root" {
		t.Errorf("got %v", err)
	}
}
