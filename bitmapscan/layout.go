package bitmapscan

// What a bitmap table holds. Source: QEMU docs/interop/qcow2.txt, "Bitmap
// table", and block/qcow2-bitmap.c for the limits.
const (
	// entryOffsetMask covers bits 9 to 55: the host offset of a cluster of
	// bitmap data. Zero there means that the entry has no cluster.
	entryOffsetMask = uint64(1)<<56 - 1<<9
	// entryAllDirty is bit 0. It is legal only without a cluster, and then
	// says whether the bits are all ones or all zeros.
	entryAllDirty = uint64(1)
	// entryReserved are bits 1 to 8 and 56 to 63, which must be zero.
	entryReserved = ^(entryOffsetMask | entryAllDirty)

	minGranularityBytes = int64(1) << 9
	maxGranularityBytes = int64(1) << 31
	minClusterBytes     = int64(1) << 9
	maxClusterBytes     = int64(1) << 21
)

// Bits lie in the data as QEMU's hbitmap serialises them: bit n of the bitmap
// is bit n%8, counted from the least significant, of byte n/8. So a 64-bit
// little-endian load has bit n as its bit n%64, on every machine.
const (
	wordBytes = 8
	wordBits  = 64
)
