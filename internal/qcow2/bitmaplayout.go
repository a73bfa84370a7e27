package qcow2

// The bytes of bitmaps, by the names of QEMU's docs/interop/qcow2.txt,
// "Bitmaps". The limits are QEMU's (block/qcow2-bitmap.c); each of them makes
// QEMU refuse the whole image, so none is ever exceeded here.

// Byte offsets of the fields of a bitmap directory entry. Extra data and the
// name follow; an entry is padded with zeros to a multiple of 8 bytes.
const (
	bitmapEntryTableOffset  = 0  // uint64
	bitmapEntryTableEntries = 8  // uint32
	bitmapEntryFlags        = 12 // uint32
	bitmapEntryType         = 16 // uint8
	bitmapEntryGranularity  = 17 // uint8, log2 of bytes
	bitmapEntryNameBytes    = 18 // uint16
	bitmapEntryExtraBytes   = 20 // uint32
	bitmapEntryFixedBytes   = 24
)

// Flags of a bitmap directory entry.
const (
	bitmapInUse  = 1 << 0 // not saved properly: neither bits nor metadata are current
	bitmapAuto   = 1 << 1 // every writer of the disk must record into it
	bitmapExtra  = 1 << 2 // extra data may be ignored
	bitmapsKnown = bitmapInUse | bitmapAuto
)

// bitmapTypeDirty is the only type: a dirty tracking bitmap.
const bitmapTypeDirty = 1

// Limits of QEMU.
const (
	minGranularityBits    = 9
	maxGranularityBits    = 31
	maxBitmapNameBytes    = 1023
	maxBitmapTableEntries = 0x8000000
	maxBitmapDataBytes    = 0x20000000 // table entries times cluster size
)

// Bitmap table entries. An entry is one of three things: BitmapAllClean,
// BitmapAllDirty, or the offset of one cluster of bits.
const (
	// BitmapAllClean is the entry for a range without a dirty bit.
	BitmapAllClean uint64 = 0
	// BitmapAllDirty is the entry for a range of nothing but dirty bits. QEMU
	// reads it, and never writes it.
	BitmapAllDirty uint64 = 1

	bitmapTableEntryBytes   = 8
	bitmapTableOffsetMask   = 0x00fffffffffffe00
	bitmapTableReservedMask = 0xff000000000001fe
)
