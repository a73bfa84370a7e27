package agent

import (
	"bytes"
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/upload"
)

// extras are the extra files of a run. They are laid out in one space and stored
// like a disk that is always read whole: they are small, and a point must not need
// another for them.
type extras struct {
	format.Extras
	*bytes.Reader // the space
	mapping       *mapping
}

// newExtras lays the files out; nil when there are none.
func newExtras(files []source.Extra, blockBytes int64) (*extras, error) {
	if len(files) == 0 {
		return nil, nil
	}
	x := &extras{}
	for _, f := range files {
		x.Files = append(x.Files, format.ExtraFile{Name: f.Name, Bytes: int64(len(f.Data))})
	}
	size := x.SizeBytes(blockBytes)
	if len(files) > format.MaxExtras || size > format.MaxExtrasBytes {
		return nil, fmt.Errorf("%w: %d extra files of %d bytes are too many for a point", ErrJob, len(files), size)
	}
	space := make([]byte, size)
	for i, f := range files {
		copy(space[x.Offset(i, blockBytes):], f.Data)
	}
	x.Reader = bytes.NewReader(space)
	return x, nil
}

// Extents gives the whole space.
func (x *extras) Extents(context.Context) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		if x.Size() > 0 {
			yield(extent.Extent{Len: x.Size()}, nil)
		}
	}
}

// plan makes the space look like a disk to the maps.
func (x *extras) plan() *diskPlan {
	return &diskPlan{
		ordinal: format.ExtrasOrdinal, Decision: Decision{Mode: format.ModeFull},
		evidence: source.DiskEvidence{Name: "extra files", SizeBytes: x.Size()},
	}
}

func (x *extras) job() upload.Job {
	return upload.Job{
		Name: "extra files", Ordinal: format.ExtrasOrdinal, Disk: x, Map: x.mapping.setter, Rescan: true, Stats: &upload.DiskStats{},
	}
}

// record is what the point's record says of them, once they are stored.
func (x *extras) record() *format.Extras {
	if x == nil {
		return nil
	}
	return &format.Extras{Files: x.Files, Map: x.mapping.disk.root}
}
