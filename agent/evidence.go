package agent

import (
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source/facts"
)

// evidence compares the image with what the base's record says of it. A reason
// means that the bits, sound as they look, do not tell every change.
func (in *BaseInput) evidence(ours family, base ident.RunID) (Reason, string) {
	stamp := in.Stamps[base]
	was, is := stamp.Disk.Image, in.Facts
	switch {
	case stamp.BlockBytes != in.BlockBytes:
		return ReasonBlockSize, fmt.Sprintf("%d bytes at the base, now %d", stamp.BlockBytes, in.BlockBytes)
	case in.SizeBytes < stamp.Disk.SizeBytes:
		return ReasonShrank, fmt.Sprintf("from %d to %d bytes", stamp.Disk.SizeBytes, in.SizeBytes)
	case ours.restored(base):
		return in.restoredEvidence()
	case was.Format != is.Format:
		return ReasonChainChanged, fmt.Sprintf("format was %s, is %s", was.Format, is.Format)
	}
	reason, detail := compareChain(was.Chain, is.Chain)
	switch {
	case in.FamilyInLayers > 1 && reason != ReasonNone:
		return ReasonTwoLayers, fmt.Sprintf("%d layers, and they are not those of the base: %s", in.FamilyInLayers, detail)
	case in.FamilyInLayers > 1 && !timed(is.Chain):
		return ReasonTwoLayers, fmt.Sprintf("%d layers, one of them without times", in.FamilyInLayers)
	case reason != ReasonNone:
		return reason, detail
	}
	// From here on: signs of writes that left no bit. A grown disk has a new L1
	// table without any write. Of a machine that ran, on either side, they are not
	// known: they change while they are looked at.
	if ours.dirtyBytes() != 0 || in.SizeBytes != stamp.Disk.SizeBytes {
		return ReasonNone, ""
	}
	if !was.ActiveL1.IsZero() && !is.ActiveL1.IsZero() && was.ActiveL1 != is.ActiveL1 {
		return ReasonActiveL1, "clusters were allocated, or an internal snapshot was applied"
	}
	for i := range is.Chain {
		w, n := was.Chain[i].ModifiedNanos, is.Chain[i].ModifiedNanos
		if is.Chain[i].Role == facts.RoleData && w != 0 && n != 0 && w != n {
			return ReasonNoBits, is.Chain[i].Path + " was modified"
		}
	}
	return ReasonNone, ""
}

// restoredEvidence is evidence for an image that a restore made of the base: what
// the record says of files is about those that the base was read from.
func (in *BaseInput) restoredEvidence() (Reason, string) {
	if is := in.Facts; len(is.Chain) != 1 || is.Chain[0].Backing != "" {
		return ReasonChainChanged, fmt.Sprintf("a restored image is one file, this disk is made of %d", len(is.Chain))
	}
	return ReasonNone, ""
}

// timed reports whether every file below the top has times, which block devices
// have not: without them nobody can tell that a layer below was not written to.
func timed(chain []format.LayerFacts) bool {
	for _, l := range chain {
		if l.Role != facts.RoleTop && l.ChangedNanos == 0 {
			return false
		}
	}
	return true
}

// compareChain compares layer by layer. The top changes with every write and may
// be moved, the data file changes with every write but is one file, and what lies
// below must not have changed at all.
func compareChain(was, is []format.LayerFacts) (Reason, string) {
	if len(was) != len(is) {
		return ReasonChainChanged, fmt.Sprintf("%d files at the base, now %d", len(was), len(is))
	}
	for i := range is {
		w, n := was[i], is[i]
		if w.Role != n.Role || w.Format != n.Format || w.Backing != n.Backing || w.Header != n.Header {
			return ReasonChainChanged, fmt.Sprintf("%s %s: role, format, header or backing name is not what the base found", n.Role, n.Path)
		}
		switch n.Role {
		case facts.RoleTop:
		case facts.RoleData:
			if w.Device != n.Device || w.Inode != n.Inode {
				return ReasonDataFile, n.Path + " is another file"
			}
		default:
			// The device number is left out: it changes when a host restarts.
			// A time of last change by the kernel's clock cannot be set by a copy.
			w.Device, w.Path = n.Device, n.Path
			if w != n {
				return ReasonChainChanged, fmt.Sprintf("%s %s: file, size or times are not what the base found", n.Role, n.Path)
			}
		}
	}
	return ReasonNone, ""
}

// moved reports whether the image may lie in another file than at the base. Which
// block device has which name is decided anew each time a host starts, so one of
// them may always be another.
func moved(base *format.DiskRecord, is format.ImageFacts) bool {
	if base == nil {
		return false
	}
	device := len(is.Chain) > 0 && is.Chain[0].ChangedNanos == 0
	return device || base.Image.Device != is.Device || base.Image.Inode != is.Inode
}
