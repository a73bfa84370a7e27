package agent

import (
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
)

// family is the set of bitmaps of one machine in one image, with the names
// parsed. Foreign names are not in it.
type family []Bitmap

// sound reports whether the bits of a bitmap may be believed at all.
func (b Bitmap) sound() bool { return !b.InUse && b.Problem == "" }

// unbroken reports whether recording has gone on without a gap since the stamp:
// a sound bitmap of that stamp records, or prev links lead over sound bitmaps to
// one that does. The bits of all of them together are every write since.
func (f family) unbroken(stamp ident.RunID) bool {
	reached := map[ident.RunID]bool{stamp: true}
	for front := []ident.RunID{stamp}; len(front) > 0; front = front[1:] {
		for _, b := range f {
			if b.Name.Stamp != front[0] || !b.sound() {
				continue
			}
			if b.Recording {
				return true
			}
			for _, next := range f {
				if next.Name.Prev == front[0] && !reached[next.Name.Stamp] {
					reached[next.Name.Stamp] = true
					front = append(front, next.Name.Stamp)
				}
			}
		}
	}
	return false
}

// restored reports whether a restore of this point made the image. It names the
// point twice: the bitmap continues the stamp, and was frozen from nothing else.
func (f family) restored(stamp ident.RunID) bool {
	for _, b := range f {
		if b.Name.Stamp == stamp && b.Name.Prev == stamp {
			return true
		}
	}
	return false
}

// stamps lists the stamps of a family, each once, in ascending order.
func (f family) stamps() []ident.RunID {
	var list []ident.RunID
	for _, b := range f {
		if !slices.Contains(list, b.Name.Stamp) {
			list = append(list, b.Name.Stamp)
		}
	}
	slices.SortFunc(list, ident.RunID.Compare)
	return list
}

// with lists the bitmaps of one stamp.
func (f family) with(stamp ident.RunID) family {
	var list family
	for _, b := range f {
		if b.Name.Stamp == stamp {
			list = append(list, b)
		}
	}
	return list
}

// dirtyBytes is the sum of set bits times granularity over all bitmaps, at least
// the size of their union; -1 when one of them is unknown.
func (f family) dirtyBytes() int64 {
	var sum int64
	for _, b := range f {
		if b.DirtyBytes < 0 {
			return -1
		}
		sum += b.DirtyBytes
	}
	return sum
}

// whyBroken says why recording since a stamp of this family is not unbroken.
func (f family) whyBroken(stamp ident.RunID) (Reason, string) {
	for _, b := range f.with(stamp) {
		if b.InUse {
			return ReasonInUse, b.Name.String()
		}
		if b.Problem != "" {
			return ReasonUnknownFlags, b.Name.String() + ": " + b.Problem
		}
	}
	recording := family{}
	for _, b := range f {
		if b.Recording && b.sound() {
			recording = append(recording, b)
		}
	}
	if len(recording) > 0 {
		return ReasonLinkMissing, "nothing leads from " + stamp.String() + " to " + recording[0].Name.String()
	}
	for _, b := range f {
		if b.InUse {
			return ReasonInUse, b.Name.String()
		}
		if b.Problem != "" {
			return ReasonUnknownFlags, b.Name.String() + ": " + b.Problem
		}
	}
	return ReasonOnlyFrozen, stamp.String() + " does not record"
}
