package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// Bitmap is one entry of the bitmap directory.
type Bitmap struct {
	// Name is the name as QEMU reads it: up to the first zero byte.
	Name string
	// GranularityBytes is what one bit stands for: a power of two, 512 B to
	// 2 GiB.
	GranularityBytes int64
	// InUse says that the bitmap was not saved properly: it must not be used.
	InUse bool
	// Enabled says that every writer of the disk records into it.
	Enabled bool
	// Flags and Type are the fields as stored.
	Flags uint32
	Type  uint8
	// TableOffset is the place of the bitmap table in the image file, and
	// TableEntries its length in entries of 8 bytes.
	TableOffset  int64
	TableEntries uint32
	// ExtraBytes is the length of the extra data; always 0, because an image
	// with extra data is refused as QEMU refuses it.
	ExtraBytes int

	entryAt, entryBytes int64 // place inside the directory
	nameBytes           int   // length as stored
}

// ParseBitmapDirectory parses the bitmap directory of an image with header h,
// whose bitmaps extension says how many entries b must hold. It refuses what
// makes QEMU refuse the whole image. Errors are *Error, with offsets in the
// image file.
func ParseBitmapDirectory(b []byte, h *Header) ([]Bitmap, error) {
	if h.Bitmaps == nil {
		return nil, nil
	}
	start := h.Bitmaps.DirectoryOffset
	if len(b) == 0 || len(b) > maxBitmapDirBytes {
		return nil, corrupt("bitmap directory", start, "%d bytes are not between 1 and %d", len(b), maxBitmapDirBytes)
	}
	var list []Bitmap
	names := map[string]bool{}
	for at := int64(0); at < int64(len(b)); {
		if uint32(len(list)) >= h.Bitmaps.Count {
			return nil, corrupt("bitmap directory", start+at, "more entries than the %d the header announces", h.Bitmaps.Count)
		}
		bitmap, err := parseBitmapEntry(b[at:], h, start+at)
		if err != nil {
			return nil, err
		}
		if names[bitmap.Name] {
			return nil, corrupt("bitmap directory entry", start+at, "a second bitmap with the name %q", bitmap.Name)
		}
		names[bitmap.Name] = true
		bitmap.entryAt = at
		list = append(list, bitmap)
		at += bitmap.entryBytes
	}
	if uint32(len(list)) != h.Bitmaps.Count {
		return nil, corrupt("bitmap directory", start, "%d entries instead of the %d the header announces", len(list), h.Bitmaps.Count)
	}
	return list, nil
}

// parseBitmapEntry parses the entry at the start of b, which lies at offset in
// the image file.
func parseBitmapEntry(b []byte, h *Header, offset int64) (Bitmap, error) {
	const structure = "bitmap directory entry"
	fail := func(field int64, format string, args ...any) (Bitmap, error) {
		return Bitmap{}, corrupt(structure, offset+field, format, args...)
	}
	if len(b) < bitmapEntryFixedBytes {
		return fail(0, "only %d bytes are left in the directory", len(b))
	}
	be := binary.BigEndian
	nameBytes := int64(be.Uint16(b[bitmapEntryNameBytes:]))
	extraBytes := int64(be.Uint32(b[bitmapEntryExtraBytes:]))
	entryBytes := (bitmapEntryFixedBytes + extraBytes + nameBytes + 7) &^ 7
	if entryBytes > int64(len(b)) {
		return fail(0, "its %d bytes do not fit the %d left in the directory", entryBytes, len(b))
	}
	if extraBytes != 0 {
		return Bitmap{}, unsupported(structure, offset+bitmapEntryExtraBytes, "QEMU does not open such an image either",
			"%d bytes of extra data", extraBytes)
	}
	granularityBits := b[bitmapEntryGranularity]
	flags := be.Uint32(b[bitmapEntryFlags:])
	tableOffset := be.Uint64(b[bitmapEntryTableOffset:])
	entries := be.Uint32(b[bitmapEntryTableEntries:])
	clusterBytes := h.ClusterBytes()
	switch {
	case nameBytes > maxBitmapNameBytes:
		return fail(bitmapEntryNameBytes, "a name of %d bytes exceeds %d", nameBytes, maxBitmapNameBytes)
	case b[bitmapEntryType] != bitmapTypeDirty:
		return Bitmap{}, unsupported(structure, offset+bitmapEntryType, "QEMU does not open such an image either",
			"bitmap of type %d", b[bitmapEntryType])
	case flags&^bitmapsKnown != 0:
		return Bitmap{}, unsupported(structure, offset+bitmapEntryFlags, "QEMU does not open such an image either",
			"unknown flags %#x", flags&^bitmapsKnown)
	case granularityBits < minGranularityBits || granularityBits > maxGranularityBits:
		return fail(bitmapEntryGranularity, "granularity 2^%d is not between 2^%d and 2^%d", granularityBits, minGranularityBits, maxGranularityBits)
	case tableOffset == 0 || entries == 0:
		// There is no way to write "empty" with a zero: QEMU refuses both.
		return fail(bitmapEntryTableOffset, "no bitmap table: offset %d, %d entries", tableOffset, entries)
	case tableOffset > 1<<62 || tableOffset%uint64(clusterBytes) != 0:
		return fail(bitmapEntryTableOffset, "the table's offset %d is not aligned to a cluster", tableOffset)
	case entries > maxBitmapTableEntries || int64(entries)*clusterBytes > maxBitmapDataBytes:
		return fail(bitmapEntryTableEntries, "a table of %d entries describes more than %d bytes of bits", entries, maxBitmapDataBytes)
	}
	bitmap := Bitmap{
		Name:             untilZero(b[bitmapEntryFixedBytes : bitmapEntryFixedBytes+nameBytes]),
		GranularityBytes: 1 << granularityBits,
		InUse:            flags&bitmapInUse != 0,
		Enabled:          flags&bitmapAuto != 0,
		Flags:            flags,
		Type:             bitmapTypeDirty,
		TableOffset:      int64(tableOffset),
		TableEntries:     entries,
		entryBytes:       entryBytes,
		nameBytes:        int(nameBytes),
	}
	// A resize that was interrupted leaves an old size behind, and marks the
	// bitmap as in use.
	if want := bitmapTableEntries(h.SizeBytes, bitmap.GranularityBytes, clusterBytes); !bitmap.InUse && int64(entries) != want {
		return fail(bitmapEntryTableEntries, "a table of %d entries instead of %d", entries, want)
	}
	return bitmap, nil
}

// bitmapDataBytes returns the length of a bitmap's bits: one bit for each
// granule of the disk, rounded up to whole words of 8 bytes as QEMU stores them.
func bitmapDataBytes(sizeBytes, granularityBytes int64) int64 {
	shift := bits.TrailingZeros64(uint64(granularityBytes))
	granules := sizeBytes >> shift
	if sizeBytes&(granularityBytes-1) != 0 {
		granules++
	}
	words := granules >> 6
	if granules&63 != 0 {
		words++
	}
	return words * 8
}

// bitmapTableEntries returns the exact length of a bitmap's table in entries.
func bitmapTableEntries(sizeBytes, granularityBytes, clusterBytes int64) int64 {
	return (bitmapDataBytes(sizeBytes, granularityBytes) + clusterBytes - 1) / clusterBytes
}

// appendBitmapEntry appends the directory entry of a bitmap.
func appendBitmapEntry(b []byte, bitmap Bitmap) []byte {
	be := binary.BigEndian
	b = be.AppendUint64(b, uint64(bitmap.TableOffset))
	b = be.AppendUint32(b, bitmap.TableEntries)
	b = be.AppendUint32(b, bitmap.Flags)
	b = append(b, bitmap.Type, byte(bits.TrailingZeros64(uint64(bitmap.GranularityBytes))))
	b = be.AppendUint16(b, uint16(len(bitmap.Name)))
	b = be.AppendUint32(b, 0)
	b = append(b, bitmap.Name...)
	return append(b, make([]byte, -len(b)&7)...)
}

// checkBitmapName refuses names that cannot be stored as they are.
func checkBitmapName(name string) error {
	if name == "" || len(name) > maxBitmapNameBytes {
		return fmt.Errorf("bitmap name of %d bytes: a name has 1 to %d", len(name), maxBitmapNameBytes)
	}
	if bytes.IndexByte([]byte(name), 0) >= 0 {
		return errors.New("bitmap name contains a zero byte")
	}
	return nil
}

// readBitmapDirectory reads and parses the directory; raw is as stored. Both
// are nil when the image has no bitmaps.
func readBitmapDirectory(f io.ReaderAt, h *Header, fileSize int64) (list []Bitmap, raw []byte, err error) {
	if h.Bitmaps == nil {
		return nil, nil, nil
	}
	raw = make([]byte, h.Bitmaps.DirectoryBytes)
	if err := readPadded(f, raw, h.Bitmaps.DirectoryOffset, fileSize); err != nil {
		return nil, nil, readFailed("bitmap directory", h.Bitmaps.DirectoryOffset, err)
	}
	list, err = ParseBitmapDirectory(raw, h)
	return list, raw, err
}

// ReadBitmaps is Image.Bitmaps for an image of fileSize bytes of which only the
// header was read.
func ReadBitmaps(f io.ReaderAt, h *Header, fileSize int64) ([]Bitmap, error) {
	list, _, err := readBitmapDirectory(f, h, fileSize)
	return list, err
}

// Bitmaps returns the bitmaps of the image in the order of the directory, after
// all checks that make QEMU refuse an image for its directory. When
// Header.BitmapsValid is false they are stale: QEMU has none then.
func (m *Image) Bitmaps() ([]Bitmap, error) {
	return ReadBitmaps(m.file, m.header, m.fileBytes)
}
