package agent

import (
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// Roles of layers in format.LayerFacts.
const (
	roleTop  = "top"
	roleData = "data"
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
	case was.Format != is.Format:
		return ReasonChainChanged, fmt.Sprintf("format was %s, is %s", was.Format, is.Format)
	}
	if reason, detail := compareChain(was.Chain, is.Chain); reason != ReasonNone {
		return reason, detail
	}
	// From here on: signs of writes that left no bit. A grown disk has a new L1
	// table without any write.
	if ours.dirtyBytes() != 0 || in.SizeBytes != stamp.Disk.SizeBytes {
		return ReasonNone, ""
	}
	if was.ActiveL1 != is.ActiveL1 {
		return ReasonActiveL1, "clusters were allocated, or an internal snapshot was applied"
	}
	for i := range is.Chain {
		if is.Chain[i].Role == roleData && is.Chain[i].ModifiedNanos != was.Chain[i].ModifiedNanos {
			return ReasonNoBits, is.Chain[i].Path + " was modified"
		}
	}
	return ReasonNone, ""
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
		case roleTop:
		case roleData:
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

// moved reports whether the image lies in another file than at the base.
func moved(base *format.DiskRecord, is format.ImageFacts) bool {
	return base != nil && (base.Image.Device != is.Device || base.Image.Inode != is.Inode)
}
