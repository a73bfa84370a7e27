package live

import (
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/exported"
)

// disk is one disk of a cut.
type disk struct {
	cut      *cut
	number   int
	found    found
	base     source.Base
	exported *exported.Disk // nil until connected
}

// name makes the name of something that is this disk's in QEMU.
func (d *disk) name(prefix string) string { return numbered(prefix, d.number) }

func (d *disk) incremental() bool { return !d.base.Run.IsZero() }

// records says whether a new bitmap begins with this cut.
func (d *disk) records() bool { return d.incremental() || d.base.AddFamily }

// newBitmap is the name of that bitmap. Bitmaps that were there go on recording, so
// it continues none of them.
func (d *disk) newBitmap() string {
	return ident.BitmapName{Family: d.base.Family, Stamp: d.cut.run}.String()
}

// granularity is the finest of the bitmaps that are copied.
func (d *disk) granularity() int64 {
	finest := int64(0)
	for _, b := range d.found.evidence.Bitmaps {
		if b.Usable() && (finest == 0 || b.GranularityBytes < finest) {
			finest = b.GranularityBytes
		}
	}
	return finest
}
