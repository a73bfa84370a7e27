package fleet

import (
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/state"
)

// Health is how well a machine is backed up.
type Health string

// The healths, from the best to the worst.
const (
	HealthOK      Health = "ok"
	HealthNew     Health = "new"     // no backup was tried yet
	HealthPartial Health = "partial" // the newest point lacks disks
	HealthFailed  Health = "failed"  // the last backup failed; the objective still holds, or there is none
	HealthLate    Health = "late"    // the newest point with all disks is older than the objective
)

// Healths lists them, from the best to the worst.
func Healths() []Health {
	return []Health{HealthOK, HealthNew, HealthPartial, HealthFailed, HealthLate}
}

// HealthOf judges what is remembered of a machine with this objective; 0: it has none.
func HealthOf(r state.Result, objective time.Duration, now time.Time) Health {
	switch {
	case objective > 0 && !r.Success.Time.IsZero() && now.Sub(r.Success.Time) > objective,
		objective > 0 && r.Success.Time.IsZero() && !r.Attempt.Start.IsZero() && now.Sub(r.Attempt.Start) > objective:
		return HealthLate
	case r.Attempt.Status == state.StatusNone:
		return HealthNew
	case r.Attempt.Status == state.StatusPartial:
		return HealthPartial
	case r.Attempt.Status == state.StatusOK:
		return HealthOK
	default:
		return HealthFailed
	}
}

// Say says in a few words what is wrong; empty: nothing is.
func (h Health) Say(r state.Result, objective time.Duration, now time.Time) string {
	text := ""
	switch h {
	case HealthNew:
		text = "no backup yet"
	case HealthLate:
		if text = fmt.Sprintf("no point with all disks within %s", objective); !r.Success.Time.IsZero() {
			text = fmt.Sprintf("newest point with all disks is %s old, the objective is %s", now.Sub(r.Success.Time).Round(time.Minute), objective)
		}
	case HealthPartial, HealthFailed, HealthOK:
	}
	if r.Attempt.Error != "" && h != HealthOK {
		if text != "" {
			text += "; "
		}
		text += r.Attempt.Error
	}
	return text
}
