package agent

import (
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

// Summary is what a backup did. Its JSON is the last line of `backup --json`.
type Summary struct {
	MessageType string            `json:"message_type"` // "summary"
	Machine     ident.MachineName `json:"machine"`
	// Point is zero when none was made: a dry run, or a failure.
	Point ident.RunID `json:"point"`
	Time  time.Time   `json:"time,omitzero"`
	// Consistency is what the point holds: "offline", "crash" or "frozen".
	Consistency string `json:"consistency,omitempty"`
	// FreezeSeconds is how long the guest's file systems were frozen for it.
	FreezeSeconds   float64        `json:"freeze_seconds,omitempty"`
	Disks           []DiskSummary  `json:"disks"`
	DurationSeconds float64        `json:"duration_seconds"`
	DryRun          bool           `json:"dry_run,omitempty"`
	Alarms          []Alarm        `json:"alarms,omitempty"`
	NotReset        []DiskNotReset `json:"not_reset,omitempty"`
}

// DiskSummary is one disk of a summary. Bytes count guest bytes, but
// StoredBytes counts compressed ones.
type DiskSummary struct {
	Name   string      `json:"name"`
	Mode   string      `json:"mode"`
	Reason Reason      `json:"reason"` // why not incremental
	Detail string      `json:"detail,omitempty"`
	Error  string      `json:"error,omitempty"` // why missing
	Base   ident.RunID `json:"base,omitzero"`

	SizeBytes int64 `json:"size_bytes"`
	// DirtyBytes is set bits times granularity; the whole size when everything
	// is read.
	DirtyBytes   int64 `json:"dirty_bytes"`
	ReadBytes    int64 `json:"read_bytes"`
	ZeroBytes    int64 `json:"zero_bytes"`
	SkippedBytes int64 `json:"skipped_bytes"`
	StoredBytes  int64 `json:"stored_bytes"`
}

// DiskNotReset is a disk whose bits stayed although the point stands.
type DiskNotReset struct {
	Disk  string `json:"disk"`
	Error string `json:"error"`
}

// diskSummary tells of a disk that is in the record.
func diskSummary(d format.DiskRecord, detail string) DiskSummary {
	return DiskSummary{
		Name: d.Name, Mode: d.Mode, Reason: Reason(d.Reason), Detail: detail, Error: d.Error, Base: d.Base, SizeBytes: d.SizeBytes,
		DirtyBytes: d.DirtyBytes, ReadBytes: d.ReadBytes, ZeroBytes: d.ZeroBytes, SkippedBytes: d.SkippedBytes, StoredBytes: d.StoredBytes,
	}
}

func notReset(e *source.NotReset) []DiskNotReset {
	list := make([]DiskNotReset, 0, len(e.Disks))
	for _, d := range e.Disks {
		list = append(list, DiskNotReset{Disk: d.Disk, Error: d.Err.Error()})
	}
	return list
}
