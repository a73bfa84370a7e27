package agent

import (
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

// DiskForecast is what the next backup would read of a disk, as far as the image and
// this host know. The repository may know better: it is not asked.
type DiskForecast struct {
	Name   string `json:"name"`
	Mode   string `json:"mode"` // incremental or rescan; missing: the disk cannot be read
	Reason Reason `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"`
	Bytes  int64  `json:"bytes"` // at most
}

// Forecast says what the next backup of a machine of this family would read. Nothing is
// read for it but what Inspect has read.
func Forecast(e source.Evidence, family ident.FamilyID) []DiskForecast {
	list := make([]DiskForecast, 0, len(e.Disks))
	for _, d := range e.Disks {
		list = append(list, forecast(d, family))
	}
	return list
}

func forecast(d source.DiskEvidence, id ident.FamilyID) DiskForecast {
	f := DiskForecast{Name: d.Name, Mode: format.ModeRescan, Bytes: d.SizeBytes}
	if d.Err != nil {
		return DiskForecast{Name: d.Name, Mode: format.ModeMissing, Error: d.Err.Error()}
	}
	var ours family
	for _, b := range d.Bitmaps {
		if b.Ours && b.Family.Family == id {
			ours = append(ours, bitmapOf(b.Family, b))
		}
	}
	switch {
	case d.Version == 0:
		f.Reason = ReasonRaw
	case d.Version == 2:
		f.Reason = ReasonVersion2
	case len(ours) == 0:
		f.Reason = ReasonNoBitmap
	case !d.BitmapsUsable:
		f.Reason = ReasonAutoclear
	default:
		stamps := ours.stamps()
		f.Reason, _ = ours.whyBroken(stamps[len(stamps)-1])
		for _, stamp := range stamps {
			if !ours.unbroken(stamp) {
				continue
			}
			if bytes := ours.dirtyBytes(); bytes >= 0 {
				f.Bytes = min(bytes, d.SizeBytes)
			}
			f.Mode, f.Reason = format.ModeIncremental, ReasonNone
			break
		}
	}
	return f
}
