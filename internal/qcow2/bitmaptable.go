package qcow2

import (
	"encoding/binary"
	"io"
)

// ParseBitmapTable parses the table of bitmap b, which must be all of raw. Each
// entry of the result is BitmapAllClean, BitmapAllDirty, or the offset of a
// cluster of bits that lies inside the file of fileSize bytes: QEMU would read
// bits beyond the end as clean, and so lose them. Errors are *Error.
func ParseBitmapTable(raw []byte, h *Header, b Bitmap, fileSize int64) ([]uint64, error) {
	if int64(len(raw)) != int64(b.TableEntries)*bitmapTableEntryBytes {
		return nil, corrupt("bitmap table", b.TableOffset, "%d bytes instead of %d", len(raw), int64(b.TableEntries)*bitmapTableEntryBytes)
	}
	table := make([]uint64, b.TableEntries)
	left := bitmapDataBytes(h.SizeBytes, b.GranularityBytes)
	for i := range table {
		at := b.TableOffset + int64(i)*bitmapTableEntryBytes
		entry := binary.BigEndian.Uint64(raw[i*bitmapTableEntryBytes:])
		if err := checkBitmapTableEntry(entry, h, at); err != nil {
			return nil, err
		}
		// The length of an in-use bitmap says nothing about the disk.
		data := h.ClusterBytes()
		if !b.InUse {
			data = min(left, data)
			left -= data
		}
		if entry > BitmapAllDirty && (int64(entry) > fileSize || data > fileSize-int64(entry)) {
			return nil, truncated("bitmap table", at, "the %d bytes of bits at %d do not end within the file of %d bytes", data, entry, fileSize)
		}
		table[i] = entry
	}
	return table, nil
}

// checkBitmapTableEntry makes the checks that QEMU makes.
func checkBitmapTableEntry(entry uint64, h *Header, at int64) error {
	offset := entry & bitmapTableOffsetMask
	switch {
	case entry&bitmapTableReservedMask != 0:
		return corrupt("bitmap table", at, "reserved bits are set in entry %#x", entry)
	case offset != 0 && entry&BitmapAllDirty != 0:
		return corrupt("bitmap table", at, "entry %#x is an offset and all ones at once", entry)
	case offset&uint64(h.ClusterBytes()-1) != 0:
		return corrupt("bitmap table", at, "entry %#x is not aligned to a cluster", entry)
	}
	return nil
}

// ReadBitmapTable reads the table of one bitmap of an image of fileSize bytes: see
// ParseBitmapTable.
func ReadBitmapTable(f io.ReaderAt, h *Header, b Bitmap, fileSize int64) ([]uint64, error) {
	n := int64(b.TableEntries) * bitmapTableEntryBytes
	if b.TableOffset > fileSize || n > fileSize-b.TableOffset {
		return nil, truncated("bitmap table", b.TableOffset, "its %d bytes do not end within the file of %d bytes", n, fileSize)
	}
	raw := make([]byte, n)
	if err := readPadded(f, raw, b.TableOffset, fileSize); err != nil {
		return nil, readFailed("bitmap table", b.TableOffset, err)
	}
	return ParseBitmapTable(raw, h, b, fileSize)
}

// BitmapTable reads the table of one of the image's bitmaps: see
// ParseBitmapTable.
func (m *Image) BitmapTable(b Bitmap) ([]uint64, error) {
	return ReadBitmapTable(m.file, m.header, b, m.fileBytes)
}
