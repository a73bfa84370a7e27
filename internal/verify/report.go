package verify

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// ErrNoMachine: a machine that was asked for has no object in the repository.
var ErrNoMachine = errors.New("no such machine in the repository")

// Options of Run. The zero value is usable.
type Options struct {
	Machines []ident.MachineName // nil: all
	// Data reads every pack that a point needs, decodes each frame and compares the hash of each block.
	Data    bool
	Workers int // requests at a time; 0: 8

	// Record stores a verdict for each run whose data is damaged, so that no backup builds on it. A store that refuses
	// it gets a remark in the report.
	Record bool
	Host   string // for verdicts
	Tool   string
	Clock  func() time.Time // nil: time.Now

	Stats *Stats
}

// Stats counts what was done. The caller owns it and may read it at any time.
type Stats struct {
	Objects atomic.Int64 // that were looked at
	Bytes   atomic.Int64 // that were read
	Total   atomic.Int64 // bytes to read, as far as known by now
}

// Report is what Run found.
type Report struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"` // read, without what was read twice
	Points  int   `json:"points"`

	Damage []Damage `json:"damage"` // ascending by key and offset
	// RangesOmitted counts ranges of disks that are not in Damage because there were too many.
	RangesOmitted int64    `json:"ranges_omitted,omitempty"`
	Remarks       []string `json:"remarks"` // what is worth knowing and no damage
}

// Damage is one object, or a part of one, that is missing or not what it must be.
type Damage struct {
	Key     string `json:"key"`
	Offset  int64  `json:"offset"` // in the object; -1: the object as a whole
	Length  int64  `json:"length"`
	Problem string `json:"problem"`
	// Points that cannot be restored in whole because of it. None: no point needs what is damaged.
	Points []AffectedPoint `json:"points"`
}

// AffectedPoint is a point that lost something.
type AffectedPoint struct {
	Machine ident.MachineName `json:"machine"`
	Point   ident.RunID       `json:"point"`
	Time    time.Time         `json:"time"` // the point in time; when the run began where the record cannot be read
	// Unreadable: the point cannot be opened at all. Where the record is lost, its disks are not known.
	Unreadable bool            `json:"unreadable,omitempty"`
	Disks      []AffectedRange `json:"disks"` // by disk and offset, neighbours joined
}

// AffectedRange is a range of a disk that is lost, in bytes.
type AffectedRange struct {
	Disk string `json:"disk"`
	Off  int64  `json:"offset"`
	Len  int64  `json:"length"`
}
