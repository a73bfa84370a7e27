package offline

import (
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
)

// plan is how an image's bitmaps are brought to stand for a new point: first a
// restart of one of them, then one replacement. Either may be missing.
type plan struct {
	// restart is the bitmap that becomes the new point's, named final; empty:
	// none.
	restart, final string
	add            []qcow2.BitmapSpec
	remove         []string
}

// empty says that there is nothing to do.
func (p plan) empty() bool { return p.restart == "" && len(p.add)+len(p.remove) == 0 }

// planCommit decides what happens to the bitmaps of a family when the point of
// run stands. All of our bits are in that point, so everything but one empty
// recording bitmap may go; a crash between the two steps leaves more of ours, and
// the next run reads the union.
//
// A bitmap that already has the run's stamp comes first: this is a repetition of
// a commit that failed half-way. Otherwise the latest that records is taken, for
// no better reason than that one has to be.
//
// valid says whether the image's bitmaps count; if not, the editor drops them all
// when it adds one.
func planCommit(ours []bitmap, valid bool, family ident.FamilyID, run ident.RunID, addFamily bool) plan {
	var p plan
	final := ident.BitmapName{Family: family, Stamp: run}
	best := -1
	for i, b := range ours {
		if !valid || b.InUse || !b.Enabled {
			continue
		}
		if best < 0 || precedes(ours[best].name, b.name, run) {
			best = i
		}
	}
	switch {
	case best >= 0:
		// The name loses its link before the bits go. Kept until after, it would
		// say that a frozen bitmap and this empty one together hold every write,
		// and a crash there, with the new point lost or forgotten later, would
		// make an increment that misses what was cleared.
		p.restart = ours[best].Name
		p.final = final.String()
	case addFamily:
		p.add = []qcow2.BitmapSpec{{Name: final.String(), GranularityBytes: newGranularityBytes, Enabled: true}}
	default:
		return plan{}
	}
	if !valid {
		return p
	}
	for i, b := range ours {
		if i != best {
			p.remove = append(p.remove, b.Name)
		}
	}
	return p
}

// precedes says whether b is the better one to restart.
func precedes(a, b ident.BitmapName, run ident.RunID) bool {
	if (a.Stamp == run) != (b.Stamp == run) {
		return b.Stamp == run
	}
	return a.String() < b.String()
}

// apply does what the plan says, on an image that is locked for writing.
func (p plan) apply(f qcow2.File) error {
	if p.empty() {
		return nil
	}
	editor, err := qcow2.OpenEditor(f)
	if err != nil {
		return err
	}
	if p.restart != "" {
		if err := editor.Restart(p.restart, p.final, p.final); err != nil {
			return err
		}
	}
	if len(p.add)+len(p.remove) == 0 {
		return nil
	}
	return editor.Replace(p.add, p.remove)
}
