package agent

import (
	"github.com/qbackup/qbackup/internal/repo/format"
)

// record is one disk of the point, as far as the run got.
func (d *diskPlan) record() format.DiskRecord {
	r := format.DiskRecord{Name: d.evidence.Name, Ordinal: d.ordinal}
	if d.evidence.Err != nil {
		r.Mode, r.Error = format.ModeMissing, clip(d.evidence.Err.Error())
		return r
	}
	r.Mode, r.Reason, r.Base = d.Mode, string(d.Reason), d.Base
	r.SizeBytes, r.Image, r.Map = d.evidence.SizeBytes, d.evidence.Facts, d.root
	r.DirtyBytes = d.dirtyBytes
	if s := d.stats; s != nil {
		r.ReadBytes, r.ZeroBytes = s.Read.Load(), s.Zero.Load()
		r.SkippedBytes, r.StoredBytes = s.Skipped.Load(), s.Stored.Load()
	}
	return r
}

// clip keeps a message short enough for a record that must stay small.
func clip(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
