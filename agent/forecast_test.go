package agent

import (
	"errors"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

func TestAForecastFollowsTheBits(t *testing.T) {
	bitmap := func(stamp, prev byte, recording bool, dirty int64) source.BitmapEvidence {
		return source.BitmapEvidence{
			Family: ident.BitmapName{Family: testFamily, Stamp: runN(stamp), Prev: runN(prev)}, Ours: true, Recording: recording, DirtyBytes: dirty,
		}
	}
	foreign := source.BitmapEvidence{Name: "mine", Recording: true, DirtyBytes: 5}
	broken := bitmap(2, 0, true, 3)
	broken.InUse = true
	for _, c := range []struct {
		name string
		d    source.DiskEvidence
		want DiskForecast
	}{
		{"one that records", source.DiskEvidence{Version: 3, BitmapsUsable: true, Bitmaps: []source.BitmapEvidence{foreign, bitmap(1, 0, true, 3)}}, DiskForecast{Mode: format.ModeIncremental, Bytes: 3}},
		{"a chain", source.DiskEvidence{Version: 3, BitmapsUsable: true, Bitmaps: []source.BitmapEvidence{bitmap(1, 0, false, 3), bitmap(2, 1, true, 4)}}, DiskForecast{Mode: format.ModeIncremental, Bytes: 7}},
		{"more bits than disk", source.DiskEvidence{Version: 3, BitmapsUsable: true, Bitmaps: []source.BitmapEvidence{bitmap(1, 0, true, 200)}}, DiskForecast{Mode: format.ModeIncremental, Bytes: 100}},
		{"uncounted", source.DiskEvidence{Version: 3, BitmapsUsable: true, Bitmaps: []source.BitmapEvidence{bitmap(1, 0, true, -1)}}, DiskForecast{Mode: format.ModeIncremental, Bytes: 100}},
		{"in use", source.DiskEvidence{Version: 3, BitmapsUsable: true, Bitmaps: []source.BitmapEvidence{broken}}, DiskForecast{Mode: format.ModeRescan, Reason: ReasonInUse, Bytes: 100}},
		{"not valid", source.DiskEvidence{Version: 3, Bitmaps: []source.BitmapEvidence{bitmap(1, 0, true, 3)}}, DiskForecast{Mode: format.ModeRescan, Reason: ReasonAutoclear, Bytes: 100}},
		{"another's", source.DiskEvidence{Version: 3, BitmapsUsable: true, Bitmaps: []source.BitmapEvidence{foreign}}, DiskForecast{Mode: format.ModeRescan, Reason: ReasonNoBitmap, Bytes: 100}},
		{"raw", source.DiskEvidence{}, DiskForecast{Mode: format.ModeRescan, Reason: ReasonRaw, Bytes: 100}},
		{"version 2", source.DiskEvidence{Version: 2}, DiskForecast{Mode: format.ModeRescan, Reason: ReasonVersion2, Bytes: 100}},
		{"gone", source.DiskEvidence{Err: errors.New("gone")}, DiskForecast{Mode: format.ModeMissing, Error: "gone"}},
	} {
		c.d.Name, c.d.SizeBytes, c.want.Name = "vda", 100, "vda"
		if got := Forecast(source.Evidence{Disks: []source.DiskEvidence{c.d}}, testFamily); len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
