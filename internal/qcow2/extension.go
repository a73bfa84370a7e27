package qcow2

import (
	"bytes"
	"encoding/binary"
	"math"
)

// parseExtensions walks the header extensions. The walk ends at the end marker
// or where the room for extensions ends; each step is at least 8 bytes, so it
// always ends.
func (h *Header) parseExtensions(cluster []byte) error {
	at := h.HeaderBytes
	for at+extensionHeaderBytes <= h.ExtensionsLimit {
		kind := binary.BigEndian.Uint32(cluster[at:])
		n := int64(binary.BigEndian.Uint32(cluster[at+4:]))
		if kind == extensionEnd {
			break
		}
		if n > h.ExtensionsLimit-at-extensionHeaderBytes {
			return corrupt("header extension", at, "type %#08x: its %d bytes do not fit the header", kind, n)
		}
		data := cluster[at+extensionHeaderBytes:][:n:n]
		e := Extension{Type: kind, Offset: at, Data: bytes.Clone(data)}
		if err := h.takeExtension(e); err != nil {
			return err
		}
		h.Extensions = append(h.Extensions, e)
		at += extensionHeaderBytes + (n+7)&^7
	}
	h.ExtensionsEnd = min(at, h.ExtensionsLimit)
	return nil
}

// takeExtension reads what an extension says, when its type is known. A later
// extension of the same type wins, as in QEMU.
func (h *Header) takeExtension(e Extension) error {
	switch e.Type {
	case extensionBackingFormat:
		if len(e.Data) > maxBackingFormatBytes {
			return corrupt("backing format extension", e.Offset, "%d bytes long", len(e.Data))
		}
		h.BackingFormat = untilZero(e.Data)
	case extensionDataFile:
		h.DataFile = untilZero(e.Data)
	case extensionFeatureNames:
		h.FeatureNames = parseFeatureNames(e.Data)
	case extensionBitmaps:
		return h.takeBitmaps(e)
	}
	return nil
}

// takeBitmaps reads the bitmaps extension. QEMU checks its length always, and
// the rest only when the extension is said to be valid.
func (h *Header) takeBitmaps(e Extension) error {
	if len(e.Data) != bitmapsExtensionBytes {
		return corrupt("bitmaps extension", e.Offset, "%d bytes long instead of %d", len(e.Data), bitmapsExtensionBytes)
	}
	if h.Version < 3 {
		return nil
	}
	be := binary.BigEndian
	payload := e.Offset + extensionHeaderBytes
	if reserved := be.Uint32(e.Data[4:]); reserved != 0 {
		if h.BitmapsValid() {
			return corrupt("bitmaps extension", payload+4, "reserved field is %#x", reserved)
		}
		return nil
	}
	// A value that does not fit an int64 becomes the largest, which is beyond
	// every limit and aligned to nothing.
	h.Bitmaps = &BitmapsExtension{
		Count:           be.Uint32(e.Data),
		DirectoryBytes:  int64(min(be.Uint64(e.Data[8:]), math.MaxInt64)),
		DirectoryOffset: int64(min(be.Uint64(e.Data[16:]), math.MaxInt64)),
		PayloadOffset:   payload,
	}
	return nil
}

// parseFeatureNames reads the feature name table; a torn last entry is ignored.
func parseFeatureNames(b []byte) []FeatureName {
	var names []FeatureName
	for ; len(b) >= featureNameBytes; b = b[featureNameBytes:] {
		names = append(names, FeatureName{Kind: b[0], Bit: b[1], Name: untilZero(b[2:featureNameBytes])})
	}
	return names
}

// untilZero returns b as a string up to its first zero byte, as C reads it.
func untilZero(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
