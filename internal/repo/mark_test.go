package repo

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store/mem"
)

// dated makes a world whose store dates objects by a clock of its own.
func dated(t *testing.T) (*world, *time.Time) {
	w := emptyWorld(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	w.mem = mem.NewWithClock(func() time.Time { return now })
	w.store = w.mem
	w.make()
	return w, &now
}

func (w *world) spec(run ident.RunID) MarkSpec {
	return MarkSpec{Machine: testMachine, MachineID: w.machine.ID, Run: run, By: "test", Host: "host1"}
}

func TestAForgottenPointComesBackWithinTheGrace(t *testing.T) {
	w, now := dated(t)
	ctx := context.Background()
	p := w.backup(nil, 4*testBlock, change{0, 4, 1})
	run, spec := p.record.Run, w.spec(p.record.Run)
	step := func(name string, f func(context.Context, MarkSpec) (bool, error), want bool, wantErr error) {
		t.Helper()
		if changed, err := f(ctx, spec); changed != want || !errors.Is(err, wantErr) {
			t.Fatalf("%s: %v, %v", name, changed, err)
		}
	}
	visible := func(want bool) {
		t.Helper()
		_, err := w.repo.Record(ctx, testMachine, run)
		points, listErr := w.repo.Points(ctx, testMachine)
		if (err == nil) != want || (len(points) == 1) != want || listErr != nil {
			t.Fatalf("visible: %v, %d points, %v", err, len(points), listErr)
		}
		_, err = w.begin(ctx, p)
		if forgotten := (*BaseForgottenError)(nil); want != (err == nil) || !want && !errors.As(err, &forgotten) {
			t.Fatalf("a run on it: %v", err)
		}
	}
	step("unforget what stands", w.repo.Unforget, false, nil)
	visible(true)
	step("forget", w.repo.Forget, true, nil)
	visible(false)
	step("forget again", w.repo.Forget, false, nil)
	*now = now.Add(5 * 24 * time.Hour)
	step("unforget", w.repo.Unforget, true, nil)
	visible(true)
	step("forget", w.repo.Forget, true, nil)
	*now = now.Add(format.Grace - format.GraceMargin)
	step("unforget too late", w.repo.Unforget, false, ErrGraceOver)
	if keys := w.keys(format.TombstoneKey(testMachine, run, 0)); len(keys) != 4 {
		t.Errorf("too late leaves %v", keys)
	}
	*now = now.Add(format.GraceMargin)
	step("and again", w.repo.Unforget, false, ErrGraceOver)
	step("to pin it", w.repo.Pin, true, ErrGraceOver)
	visible(false)
	all, err := w.repo.Tombstones(ctx, testMachine)
	if err != nil || !all[run].Since.Equal(now.Add(-format.Grace)) {
		t.Errorf("forgotten since %v, %v", all, err)
	}
}

func TestAPinIsSetAndTakenBack(t *testing.T) {
	w, now := dated(t)
	ctx := context.Background()
	p := w.backup(nil, 4*testBlock, change{0, 4, 1})
	spec := w.spec(p.record.Run)
	for range 2 {
		if changed, err := w.repo.Pin(ctx, spec); !changed || err != nil {
			t.Fatal(changed, err)
		}
		if runs, err := w.repo.Pinned(ctx, testMachine); len(runs) != 1 || runs[0] != spec.Run || err != nil {
			t.Fatal(runs, err)
		}
		*now = now.Add(100 * 24 * time.Hour)
		if changed, err := w.repo.Unpin(ctx, spec); !changed || err != nil {
			t.Fatal(changed, err)
		}
		if runs, err := w.repo.Pinned(ctx, testMachine); len(runs) != 0 || err != nil {
			t.Fatal(runs, err)
		}
	}
}
