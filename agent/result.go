package agent

import (
	"context"
	"errors"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
)

// Ending is how a try to back a machine up ended, also one that got no further than
// finding the store unreachable.
type Ending struct {
	Machine    ident.MachineName
	Start, End time.Time
	Summary    Summary
	Err        error
	Class      string // of Err, in the words of the exit codes
}

// Status sorts an ending.
func (e Ending) Status() state.Status {
	switch {
	case e.Err == nil:
		return state.StatusOK
	case errors.Is(e.Err, ErrSomeFailed):
		return state.StatusPartial
	case errors.Is(e.Err, context.Canceled):
		return state.StatusInterrupted
	default:
		return state.StatusFailed
	}
}

// Remember writes an ending down, for people and metrics.
func Remember(results *state.Results, e Ending) error {
	return results.Update(e.Machine, e.apply)
}

func (e Ending) apply(r *state.Result) {
	s := e.Summary
	r.Attempt = state.Attempt{
		Start: e.Start.UTC(), End: e.End.UTC(), Status: e.Status(), Class: e.Class, Consistency: s.Consistency,
		DurationSeconds: e.End.Sub(e.Start).Seconds(), FreezeSeconds: s.FreezeSeconds,
	}
	if e.Err != nil {
		r.Attempt.Error = e.Err.Error()
	}
	c := &r.Counters
	count(&c.Attempts, r.Attempt.Status, 1)
	c.DurationSeconds += r.Attempt.DurationSeconds
	c.FreezeSeconds += s.FreezeSeconds
	for _, a := range s.Alarms {
		r.Attempt.Alarms = append(r.Attempt.Alarms, a.Text)
		count(&c.Alarms, string(a.Kind), 1)
		if a.Kind == AlarmSample {
			c.SampleMismatches++
		}
	}
	if !s.Point.IsZero() {
		e.applyPoint(r)
	}
}

// applyPoint is apply for a run that made a point.
func (e Ending) applyPoint(r *state.Result) {
	s, c := e.Summary, &r.Counters
	r.Latest = state.Point{Run: s.Point, Time: s.Time}
	r.Disks = nil
	complete := true
	for _, d := range s.Disks {
		r.Disks = append(r.Disks, state.DiskResult{
			Name: d.Name, Mode: d.Mode, Reason: string(d.Reason), Error: d.Error, SizeBytes: d.SizeBytes,
			DirtyBytes: d.DirtyBytes, ReadBytes: d.ReadBytes, ZeroBytes: d.ZeroBytes, SkippedBytes: d.SkippedBytes, StoredBytes: d.StoredBytes,
		})
		r.Latest.StoredBytes += d.StoredBytes
		if d.Mode != format.ModeMissing {
			c.ScannedBlocks += uint64(format.Blocks(d.SizeBytes, format.DefaultBlockBytes))
		}
		c.DirtyBytes += uint64(d.DirtyBytes)
		c.ReadBytes += uint64(d.ReadBytes)
		c.ZeroBytes += uint64(d.ZeroBytes)
		c.SkippedBytes += uint64(d.SkippedBytes)
		c.StoredBytes += uint64(d.StoredBytes)
		if d.Mode == format.ModeMissing {
			complete = false
			continue
		}
		c.BitmapResets++
		if d.Mode != format.ModeIncremental {
			count(&c.Rescans, string(d.Reason), 1)
		}
	}
	c.BitmapResets -= min(c.BitmapResets, uint64(len(s.NotReset)))
	c.ResetFailures += uint64(len(s.NotReset))
	// Whatever failed after it, such as a hook, the point stands.
	if complete {
		r.Success = r.Latest
	}
}

func count[K comparable](m *map[K]uint64, key K, n uint64) {
	if *m == nil {
		*m = map[K]uint64{}
	}
	(*m)[key] += n
}
