package agent

import (
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

// StampState is what the repository, and for dead runs this host, says of a run
// that a bitmap's name mentions.
type StampState uint8

// The states of a stamp.
const (
	StampUnknown   StampState = iota // no slot, no intent: the repository never heard of it
	StampRunning                     // no slot, and its run may be alive
	StampDead                        // its run will never make a point
	StampCommitted                   // its point stands
	StampForgotten                   // its point has a tombstone
	StampDamaged                     // its record or map cannot be read
)

// Stamp is what is known of one run with regard to one disk.
type Stamp struct {
	State StampState
	// Disk is this disk in the record of a committed run; nil when the record
	// does not list it.
	Disk       *format.DiskRecord
	BlockBytes int64
	Detail     string // who runs it, or what is damaged
}

// captured reports whether the disk can be read from this run's point.
func (s Stamp) captured() bool {
	return s.State == StampCommitted && s.Disk != nil && s.Disk.Mode != format.ModeMissing
}

// Bitmap is one bitmap of our family in an image.
type Bitmap struct {
	Name             ident.BitmapName
	Recording, InUse bool
	Problem          string // why its bits cannot be believed, other than InUse
	DirtyBytes       int64  // set bits times granularity, -1 when unknown
}

func bitmapOf(name ident.BitmapName, b source.BitmapEvidence) Bitmap {
	return Bitmap{Name: name, Recording: b.Recording, InUse: b.InUse, Problem: b.Problem, DirtyBytes: b.DirtyBytes}
}

// BaseInput is everything the choice of one disk's base depends on.
type BaseInput struct {
	Disk   string
	Family ident.FamilyID

	// What the operator and this run's own findings demand.
	Rescan     bool   // asked for
	Quarantine Reason // not ReasonNone: an earlier try of this run found that the family lies

	// The image as it was found.
	Version         int // of qcow2; 0: raw
	BitmapsUsable   bool
	WhyNot          string   // why BitmapsUsable or BitmapsPossible is false
	Bitmaps         []Bitmap // foreign families are ignored
	FamilyInLayers  int      // how many layers hold bitmaps of our family
	SizeBytes       int64
	Facts           format.ImageFacts
	BlockBytes      int64 // of the repository
	BitmapsPossible bool  // the image can carry a family after this run

	// What is known of runs: every stamp of the family has an entry, and so has
	// every run that Bases leads to.
	Stamps map[ident.RunID]Stamp
	// Bases says which base a run's record names for this disk.
	Bases map[ident.RunID]ident.RunID

	// Newest is the newest readable point that captured this disk, zero for none.
	Newest ident.RunID
	// Local are runs of this host, the last and the last committed, whose bits may
	// not have been reset: that the image does not continue them says nothing.
	Local []ident.RunID
}

// Decision is how one disk will be backed up.
type Decision struct {
	Mode   string // format.ModeFull, ModeIncremental or ModeRescan
	Reason Reason // ReasonNone for an incremental
	Detail string // for people, names the bitmap, file or run
	// Base is the point whose bits are read, zero: everything is read.
	Base ident.RunID
	// Compare is the point whose blocks are compared with, zero for none. It is
	// Base in an incremental.
	Compare ident.RunID
	// Extra are ranges to be read whatever the bits say.
	Extra []extent.Extent
	// AddFamily: a fresh family is to be started when the point stands.
	AddFamily bool
	// Moved: the image's file is not the one of the base's record.
	Moved  bool
	Alarms []Alarm
	// Busy, when not zero, is a run that may be alive: nothing was chosen.
	Busy       ident.RunID
	BusyDetail string
}

// ChooseBase decides for one disk what its increment builds on. It is pure. The
// rule: of the stamps in the image, those are candidates whose point stands,
// captured this disk, and since which recording is unbroken; take one none of
// whose descendants is a candidate; anything that contradicts it means reading
// everything and comparing hashes (I3).
func ChooseBase(in BaseInput) Decision {
	ours := in.family()
	for _, stamp := range ours.stamps() {
		if s := in.Stamps[stamp]; s.State == StampRunning {
			return Decision{Busy: stamp, BusyDetail: s.Detail}
		}
	}
	d := Decision{Mode: format.ModeIncremental}
	d.Alarms = in.unknownStamps(ours)

	d.Reason, d.Detail = in.refusal(ours)
	if d.Reason == ReasonNone {
		d.Base, d.Reason, d.Detail = in.candidate(ours)
	}
	if d.Reason == ReasonNone {
		d.Reason, d.Detail = in.evidence(ours, d.Base)
		d.Alarms = append(d.Alarms, in.baseAlarms(d.Base, d.Reason, d.Detail)...)
	}
	if d.Reason != ReasonNone {
		d.Base, d.Compare = ident.RunID{}, in.Newest
		d.Mode = format.ModeRescan
		if d.Compare.IsZero() {
			d.Mode = format.ModeFull
		}
		d.AddFamily = in.BitmapsPossible
		d.Moved = !d.Compare.IsZero() && moved(in.Stamps[d.Compare].Disk, in.Facts)
		return d
	}
	d.Compare = d.Base
	base := in.Stamps[d.Base]
	d.Extra = grownTail(base.Disk.SizeBytes, in.SizeBytes, in.BlockBytes)
	d.Moved = moved(base.Disk, in.Facts)
	return d
}

// family picks our bitmaps.
func (in *BaseInput) family() family {
	var ours family
	for _, b := range in.Bitmaps {
		if b.Name.Family == in.Family {
			ours = append(ours, b)
		}
	}
	return ours
}

// refusal finds what makes looking for a candidate pointless.
func (in *BaseInput) refusal(ours family) (Reason, string) {
	switch {
	case in.Quarantine != ReasonNone:
		return in.Quarantine, "found by this run"
	case in.Newest.IsZero() && len(ours) == 0 && len(in.Bases) == 0:
		return ReasonFirst, ""
	case in.Rescan:
		return ReasonAsked, "--rescan"
	case in.Version == 0:
		return ReasonRaw, ""
	case in.Version == 2:
		return ReasonVersion2, "qemu-img amend -o compat=1.1 makes it version 3"
	case len(ours) > 0 && !in.BitmapsUsable:
		return ReasonAutoclear, in.WhyNot
	case len(ours) == 0 && !in.BitmapsUsable && in.WhyNot != "":
		// The directory could not be read, so nothing is known of what it holds.
		return ReasonUnreadable, in.WhyNot
	case len(ours) == 0 && !in.BitmapsPossible:
		return ReasonNoBitmap, in.WhyNot
	case len(ours) == 0:
		return ReasonNoBitmap, ""
	}
	return ReasonNone, ""
}

// candidate applies the rule, or says why there is no candidate.
func (in *BaseInput) candidate(ours family) (ident.RunID, Reason, string) {
	var candidates []ident.RunID
	for _, stamp := range ours.stamps() {
		if in.Stamps[stamp].captured() && ours.unbroken(stamp) {
			candidates = append(candidates, stamp)
		}
	}
	// Several may be left when the records between them are lost. Each of them
	// is right, since the union of all bits is read; the latest costs least.
	for _, c := range slices.Backward(candidates) {
		if !slices.ContainsFunc(candidates, func(other ident.RunID) bool { return in.descends(other, c) }) {
			return c, ReasonNone, ""
		}
	}
	reason, detail := in.whyNone(ours)
	return ident.RunID{}, reason, detail
}

// descends reports whether run's records lead back to ancestor. Records can be
// hostile, so a circle ends the walk.
func (in *BaseInput) descends(run, ancestor ident.RunID) bool {
	seen := map[ident.RunID]bool{}
	for at := in.Bases[run]; !at.IsZero() && !seen[at]; at = in.Bases[at] {
		if at == ancestor {
			return true
		}
		seen[at] = true
	}
	return false
}

// whyNone names the reason nearest to a usable base: a good point with broken
// recording first, a stamp nobody knows last.
func (in *BaseInput) whyNone(ours family) (Reason, string) {
	stamps := ours.stamps()
	slices.Reverse(stamps)
	for _, stamp := range stamps {
		if in.Stamps[stamp].captured() {
			return ours.whyBroken(stamp)
		}
	}
	for _, want := range []struct {
		state  StampState
		reason Reason
	}{
		{StampDamaged, ReasonBaseDamaged},
		{StampForgotten, ReasonForgotten},
		{StampCommitted, ReasonNotCaptured},
		{StampUnknown, ReasonUnknownStamp},
		{StampDead, ReasonFailedRun},
	} {
		for _, stamp := range stamps {
			if s := in.Stamps[stamp]; s.State == want.state {
				return want.reason, joined(stamp.String(), s.Detail)
			}
		}
	}
	return ReasonNoBitmap, ""
}

func joined(what, detail string) string {
	if detail == "" {
		return what
	}
	return what + ": " + detail
}

// unknownStamps raises the alarm for stamps the repository never heard of. It
// was rolled back, or it is the wrong one; a name that a crash tore while it was
// overwritten alarms nobody.
func (in *BaseInput) unknownStamps(ours family) []Alarm {
	var alarms []Alarm
	for _, stamp := range ours.stamps() {
		if in.Stamps[stamp].State == StampUnknown && !in.torn(stamp) {
			alarms = append(alarms, Alarm{Kind: AlarmRepositoryRolledBack, Disk: in.Disk, Text: fmt.Sprintf(
				"a bitmap of %s continues run %s, which this repository never heard of: it was rolled back, or is not the one used before", in.Disk, stamp)})
		}
	}
	return alarms
}

// torn reports whether a stamp is what a crash leaves when a run of this host
// overwrites its base's stamp by its own: the start of one and the rest of the
// other. It is as unknown as any other stamp.
func (in *BaseInput) torn(stamp ident.RunID) bool {
	text := stamp.String()
	for _, run := range in.Local {
		if run.IsZero() || in.Bases[run].IsZero() || stamp == run || stamp == in.Bases[run] {
			continue
		}
		after, before := run.String(), in.Bases[run].String()
		for i := range text {
			if text == after[:i]+before[i:] || text == before[:i]+after[i:] {
				return true
			}
		}
	}
	return false
}

// baseAlarms looks at a base that the bitmaps support.
func (in *BaseInput) baseAlarms(base ident.RunID, reason Reason, detail string) []Alarm {
	var alarms []Alarm
	if !in.Newest.IsZero() && in.Newest != base && !slices.Contains(in.Local, in.Newest) {
		alarms = append(alarms, Alarm{Kind: AlarmImageRolledBack, Disk: in.Disk, Text: fmt.Sprintf(
			"%s continues point %s, but the newest point is %s: the image was rolled back or cloned, and this point forks from the older one", in.Disk, base, in.Newest)})
	}
	if reason == ReasonActiveL1 || reason == ReasonNoBits {
		alarms = append(alarms, Alarm{Kind: AlarmNoBits, Disk: in.Disk, Text: in.Disk + ": " + joined(string(reason), detail)})
	}
	return alarms
}

// grownTail is what a disk gained since the base, and the base's last block when
// it was a partial one: its hash was made over padding that now is data.
func grownTail(was, is, blockBytes int64) []extent.Extent {
	if is <= was {
		return nil
	}
	start := was - was%blockBytes
	return []extent.Extent{{Off: start, Len: is - start}}
}
