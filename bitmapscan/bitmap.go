package bitmapscan

import (
	"errors"
	"fmt"
	"io"
)

// ErrCorrupt is found in the errors of a bitmap whose geometry, table or data
// cannot be right. Such a bitmap says nothing about the disk.
var ErrCorrupt = errors.New("the bitmap is damaged, its disk has to be read whole")

// Error says where in an image a bitmap could not be used.
type Error struct {
	// Structure is the part of the bitmap: "geometry", "table" or "data".
	Structure string
	// Offset is the place of data in the image file, in bytes; -1 for the
	// other structures, whose place only the caller knows.
	Offset int64
	// Err is the cause. errors.Is finds ErrCorrupt in it, or the error of the
	// reader.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("bitmap %s: %v", e.Structure, e.Err)
	}
	return fmt.Sprintf("bitmap %s at offset %d of the image: %v", e.Structure, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func corrupt(structure string, format string, args ...any) error {
	err := fmt.Errorf(format+": %w", append(args, ErrCorrupt)...)
	return &Error{Structure: structure, Offset: -1, Err: err}
}

// Bitmap is one bitmap of one image, as found in the image's bitmap directory.
type Bitmap struct {
	// SizeBytes is the size of the virtual disk that the bitmap covers.
	SizeBytes int64
	// GranularityBytes is how many bytes of the disk one bit stands for: a
	// power of two from 512 B to 2 GiB. The last bit may stand for fewer.
	GranularityBytes int64
	// ClusterBytes is the image's cluster size, a power of two from 512 B to
	// 2 MiB. One table entry covers ClusterBytes*8 bits.
	ClusterBytes int64
	// Table has the entries in host byte order: 0 for all clean, 1 for all
	// dirty, else the host offset of a cluster of bits.
	Table []uint64
	// Data is the image file. What lies beyond its end is an error, never
	// clean: a table entry that points out of the file is damage, although
	// QEMU reads zeros there.
	Data io.ReaderAt
}

// TableEntries returns the exact number of entries in the table of a bitmap
// with the given geometry. QEMU refuses an image in which it differs.
func TableEntries(sizeBytes, granularityBytes, clusterBytes int64) int64 {
	// QEMU rounds the bytes of bits up to a word before it counts clusters.
	// As a cluster is a whole number of words, that changes nothing.
	dataBytes := ceilDiv(ceilDiv(sizeBytes, granularityBytes), 8)
	return ceilDiv(dataBytes, clusterBytes)
}

// ceilDiv divides and rounds up, without overflow for any a >= 0 and b > 0.
func ceilDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 {
		q++
	}
	return q
}

// Validate checks the geometry and every table entry, without reading data.
// Its errors are *Error and have ErrCorrupt. Extents and Count call it first.
func (b *Bitmap) Validate() error {
	if b.SizeBytes < 0 {
		return corrupt("geometry", "disk size of %d bytes", b.SizeBytes)
	}
	g := b.GranularityBytes
	if g < minGranularityBytes || g > maxGranularityBytes || g&(g-1) != 0 {
		return corrupt("geometry", "granularity of %d bytes is not a power of two from 512 to 2 GiB", g)
	}
	c := b.ClusterBytes
	if c < minClusterBytes || c > maxClusterBytes || c&(c-1) != 0 {
		return corrupt("geometry", "cluster size of %d bytes is not a power of two from 512 to 2 MiB", c)
	}
	if want := TableEntries(b.SizeBytes, g, c); int64(len(b.Table)) != want {
		return corrupt("table", "%d entries where a disk of %d bytes needs %d", len(b.Table), b.SizeBytes, want)
	}
	for i, entry := range b.Table {
		if err := checkEntry(entry, c); err != nil {
			return corrupt("table", "entry %d (0x%016x) %w", i, entry, err)
		}
	}
	return nil
}

// What can be wrong with a table entry.
var (
	errReserved  = errors.New("has reserved bits set")
	errBoth      = errors.New("says both data and all dirty")
	errUnaligned = errors.New("has an offset that is no multiple of the cluster size")
)

func checkEntry(entry uint64, clusterBytes int64) error {
	switch offset := int64(entry & entryOffsetMask); {
	case entry&entryReserved != 0:
		return errReserved
	case offset != 0 && entry&entryAllDirty != 0:
		return errBoth
	case offset%clusterBytes != 0:
		return errUnaligned
	}
	return nil
}
