package state

import (
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// Status is how an attempt to back a machine up ended.
type Status string

// The statuses.
const (
	StatusNone        Status = ""            // there was no attempt
	StatusOK          Status = "ok"          // a point with all disks
	StatusPartial     Status = "partial"     // a point that lacks disks
	StatusFailed      Status = "failed"      // no point
	StatusInterrupted Status = "interrupted" // no point, and somebody wanted it so
)

// Statuses lists all but StatusNone, for metrics.
func Statuses() []Status {
	return []Status{StatusOK, StatusPartial, StatusFailed, StatusInterrupted}
}

// Result is what this host knows of a machine's backups, for people and metrics. No
// decision about data rests on it.
type Result struct {
	Machine ident.MachineName `json:"machine"`
	Attempt Attempt           `json:"attempt"`
	// Scheduled is when a backup was last begun because it was due.
	Scheduled time.Time `json:"scheduled,omitzero"`
	// Success is the newest point without missing disks, Latest the newest of all.
	Success Point `json:"success,omitzero"`
	Latest  Point `json:"latest,omitzero"`
	// Disks are those of the newest point.
	Disks    []DiskResult `json:"disks,omitempty"`
	Counters Counters     `json:"counters"`
	Verified Verified     `json:"verified,omitzero"`
	// Kept is what the repository held of the machine when its points were looked at last.
	Kept Kept `json:"kept,omitzero"`
}

// ClassNoRepository is the class of an attempt for which there was no repository yet.
const ClassNoRepository = "no_repository"

// Unfinished tells whether what was begun because it was due did not come to its end, or
// still runs, or could not begin before somebody has made the repository.
func (r Result) Unfinished() bool {
	ended := r.Attempt.Status == StatusInterrupted || r.Attempt.Class == ClassNoRepository
	return r.Attempt.End.Before(r.Scheduled) || ended && !r.Attempt.Start.Before(r.Scheduled)
}

// Attempt is one run, or what kept one from beginning.
type Attempt struct {
	Start time.Time `json:"start,omitzero"`
	End   time.Time `json:"end,omitzero"`
	// Status is StatusNone while there was no attempt.
	Status Status `json:"status"`
	// Class is the exit code's word for the error.
	Class string `json:"class,omitempty"`
	// Error is what went wrong and what to do about it, in one line.
	Error           string  `json:"error,omitempty"`
	Consistency     string  `json:"consistency,omitempty"`
	DurationSeconds float64 `json:"duration_seconds"`
	FreezeSeconds   float64 `json:"freeze_seconds,omitempty"`
	// Alarms are what somebody should look at although the run went on.
	Alarms []string `json:"alarms,omitempty"`
}

// Point is a restore point as this host remembers it.
type Point struct {
	Run         ident.RunID `json:"run"`
	Time        time.Time   `json:"time"` // the point in time
	StoredBytes int64       `json:"stored_bytes"`
}

// DiskResult is one disk of the newest point. Bytes count guest bytes, but StoredBytes
// counts compressed ones.
type DiskResult struct {
	Name         string `json:"name"`
	Mode         string `json:"mode"`
	Reason       string `json:"reason,omitempty"` // why not incremental
	Error        string `json:"error,omitempty"`  // why missing
	SizeBytes    int64  `json:"size_bytes"`
	DirtyBytes   int64  `json:"dirty_bytes"`
	ReadBytes    int64  `json:"read_bytes"`
	ZeroBytes    int64  `json:"zero_bytes"`
	SkippedBytes int64  `json:"skipped_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
}

// Counters only grow, over runs and restarts.
type Counters struct {
	Attempts         map[Status]uint64 `json:"attempts,omitempty"`
	Rescans          map[string]uint64 `json:"rescans,omitempty"` // of disks, by reason
	Alarms           map[string]uint64 `json:"alarms,omitempty"`  // by kind
	SampleMismatches uint64            `json:"sample_mismatches"`
	BitmapResets     uint64            `json:"bitmap_resets"` // of disks
	ResetFailures    uint64            `json:"reset_failures"`
	ScannedBlocks    uint64            `json:"scanned_blocks"` // whose bits were looked at, or that were read without
	DirtyBytes       uint64            `json:"dirty_bytes"`
	ReadBytes        uint64            `json:"read_bytes"`
	ZeroBytes        uint64            `json:"zero_bytes"`
	SkippedBytes     uint64            `json:"skipped_bytes"`
	StoredBytes      uint64            `json:"stored_bytes"`
	DurationSeconds  float64           `json:"duration_seconds"`
	FreezeSeconds    float64           `json:"freeze_seconds"`
}

// Verified is the last verification that looked at the machine.
type Verified struct {
	Time           time.Time `json:"time"`
	Data           bool      `json:"data"` // every block was read
	DamagedObjects int       `json:"damaged_objects"`
	DamagedPoints  int       `json:"damaged_points"`
}

// Kept is what the repository holds of a machine.
type Kept struct {
	Time      time.Time `json:"time,omitzero"` // of the look at its points
	Points    int       `json:"points"`
	Oldest    time.Time `json:"oldest,omitzero"` // the points in time
	Newest    time.Time `json:"newest,omitzero"`
	Forgotten uint64    `json:"forgotten"` // points, by this host's policy, ever
	// Error is why the policy could not be applied.
	Error string `json:"error,omitempty"`
	// StoredBytes are those of the machine's data after the last prune, of PrunedAt.
	StoredBytes int64     `json:"stored_bytes"`
	PrunedAt    time.Time `json:"pruned_at,omitzero"`
}

// Prune is the last time that this host deleted what nothing needs.
type Prune struct {
	Scheduled time.Time `json:"scheduled,omitzero"` // when it was last begun because it was due
	End       time.Time `json:"end,omitzero"`
	Error     string    `json:"error,omitempty"`
	// Objects and Bytes were deleted by all prunes of this host, RunsAborted their slots.
	Objects     uint64 `json:"objects"`
	Bytes       uint64 `json:"bytes"`
	RunsAborted uint64 `json:"runs_aborted"`
}

// Unfinished tells whether a prune that was begun because it was due did not end.
func (p Prune) Unfinished() bool { return p.End.Before(p.Scheduled) }

// StoreCounters count what was asked of a repository's store by all runs of this host.
// They only grow.
type StoreCounters struct {
	// Requests are by verb and outcome, as "put ok".
	Requests      map[string]uint64 `json:"requests,omitempty"`
	Retries       uint64            `json:"retries"`
	BytesSent     uint64            `json:"bytes_sent"`
	BytesReceived uint64            `json:"bytes_received"`
}

// Sum is how many requests there were.
func (c StoreCounters) Sum() (n uint64) {
	for _, m := range c.Requests {
		n += m
	}
	return n
}

// Overall is what this host knows of a repository as a whole.
type Overall struct {
	// Repository is the id of the repository that was found at this place last, in hex.
	Repository string        `json:"repository,omitempty"`
	Store      StoreCounters `json:"store"`
	Prune      Prune         `json:"prune,omitzero"`
}
