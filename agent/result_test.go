package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
)

func TestHowBackupsEndedIsRemembered(t *testing.T) {
	local, err := state.Open(t.TempDir(), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	results := local.Results("/srv/a")
	start := time.Date(2026, 11, 26, 1, 0, 0, 0, time.UTC)
	run := ident.RunID{1}
	full := Summary{Point: run, Time: start, Disks: []DiskSummary{
		{Name: "vda", Mode: format.ModeFull, Reason: ReasonFirst, DirtyBytes: 100, ReadBytes: 60, ZeroBytes: 40, StoredBytes: 30},
		{Name: "vdb", Mode: format.ModeIncremental, DirtyBytes: 10, ReadBytes: 10, SkippedBytes: 4, StoredBytes: 6},
	}, FreezeSeconds: 0.5}
	lacks := Summary{
		Point: ident.RunID{2}, Time: start.Add(time.Hour),
		Disks:    []DiskSummary{{Name: "vda", Mode: format.ModeIncremental, StoredBytes: 1}, {Name: "vdb", Mode: format.ModeMissing, Error: "gone"}},
		NotReset: notReset(&source.NotReset{Disks: []source.DiskNotReset{{Disk: "vda", Err: errors.New("busy")}}}),
		Alarms:   []Alarm{{Kind: AlarmSample, Text: "look"}},
	}
	for i, e := range []Ending{
		{Summary: full},
		{Err: fmt.Errorf("reach the store: %w", errors.New("no route")), Class: "failed"},
		{Err: context.Canceled},
		{Summary: lacks, Err: &SomeFailedError{}},
	} {
		e.Machine, e.Start = "web1", start.Add(time.Duration(i)*time.Hour)
		e.End = e.Start.Add(2 * time.Second)
		if err := Remember(results, e); err != nil {
			t.Fatal(err)
		}
		if got := results.Machine("web1").Attempt; got.Status != e.Status() || !got.Start.Equal(e.Start) {
			t.Errorf("attempt %d: %+v", i, got)
		}
	}
	got := results.Machine("web1")
	if got.Success.Run != run || got.Success.StoredBytes != 36 || got.Latest.Run != (ident.RunID{2}) || len(got.Disks) != 2 {
		t.Errorf("points: %+v", got)
	}
	c := got.Counters
	for _, s := range state.Statuses() {
		if c.Attempts[s] != 1 {
			t.Errorf("%d attempts were %s", c.Attempts[s], s)
		}
	}
	if c.Rescans[string(ReasonFirst)] != 1 || c.SampleMismatches != 1 || c.Alarms[string(AlarmSample)] != 1 || c.BitmapResets != 2 || c.ResetFailures != 1 {
		t.Errorf("%+v", c)
	}
	if c.DirtyBytes != 110 || c.ReadBytes != 70 || c.ZeroBytes != 40 || c.SkippedBytes != 4 || c.StoredBytes != 37 || c.DurationSeconds != 8 || c.FreezeSeconds != 0.5 {
		t.Errorf("%+v", c)
	}
}
