package qcow2

// The bytes of a qcow2 file, by the names of QEMU's docs/interop/qcow2.txt.
// Every integer in the file is big-endian; only the bits inside bitmap data
// count from the least significant bit of each byte.

const (
	magic = 0x514649fb // "QFI\xfb"

	minClusterBits = 9
	maxClusterBits = 21
	// Extended L2 entries divide a cluster into 32 subclusters of at least
	// one sector.
	minExtendedL2ClusterBits = 14
	subclustersPerCluster    = 32
	sectorBytes              = 512

	headerBytesV2    = 72
	minHeaderBytesV3 = 104
	// Version 2 stores no refcount order; its entries are always 16 bits.
	refcountOrderV2  = 4
	maxRefcountOrder = 6
)

// Byte offsets of the fields of the header.
const (
	headerMagic                 = 0   // uint32
	headerVersion               = 4   // uint32
	headerBackingOffset         = 8   // uint64
	headerBackingBytes          = 16  // uint32
	headerClusterBits           = 20  // uint32
	headerSize                  = 24  // uint64
	headerCryptMethod           = 32  // uint32
	headerL1Entries             = 36  // uint32
	headerL1Offset              = 40  // uint64
	headerRefcountTableOffset   = 48  // uint64
	headerRefcountTableClusters = 56  // uint32
	headerSnapshotCount         = 60  // uint32
	headerSnapshotsOffset       = 64  // uint64
	headerIncompatible          = 72  // uint64, version 3 from here on
	headerCompatible            = 80  // uint64
	headerAutoclear             = 88  // uint64
	headerRefcountOrder         = 96  // uint32
	headerLength                = 100 // uint32
	headerCompressionType       = 104 // uint8, only when headerLength is above 104
)

// Feature bits of the header.
const (
	incompatDirty       = 1 << 0 // refcounts may be wrong
	incompatCorrupt     = 1 << 1 // any structure may be wrong
	incompatDataFile    = 1 << 2 // guest data lies in another file
	incompatCompression = 1 << 3 // compression type is not deflate
	incompatExtendedL2  = 1 << 4 // 16-byte L2 entries with subclusters

	knownIncompatible = incompatDirty | incompatCorrupt | incompatDataFile | incompatCompression | incompatExtendedL2

	compatLazyRefcounts = 1 << 0

	autoclearBitmaps     = 1 << 0 // the bitmaps extension agrees with the data
	autoclearRawDataFile = 1 << 1 // the data file can be read as a raw disk
	knownAutoclear       = autoclearBitmaps | autoclearRawDataFile
)

// Types of header extensions.
const (
	extensionEnd           = 0x00000000
	extensionBackingFormat = 0xe2792aca
	extensionFeatureNames  = 0x6803f857
	extensionBitmaps       = 0x23852875
	extensionLUKS          = 0x0537be77
	extensionDataFile      = 0x44415441

	extensionHeaderBytes  = 8  // type, length; the data is padded to 8 bytes
	bitmapsExtensionBytes = 24 // count uint32, reserved uint32, directory size uint64, offset uint64
	featureNameBytes      = 48 // kind uint8, bit uint8, name [46]byte padded with zeros
)

// Limits that QEMU sets (block/qcow2.h, block/qcow2-bitmap.c). They bound what
// a hostile image can make us hold in memory.
const (
	maxL1Bytes            = 32 << 20
	maxRefcountTableBytes = 8 << 20
	maxSnapshots          = 65536
	maxSnapshotTableBytes = 1024 * maxSnapshots
	maxSnapshotExtraBytes = 1024
	maxBackingNameBytes   = 1023
	maxBackingFormatBytes = 15
	maxBitmaps            = 65535
	maxBitmapDirBytes     = 1024 * maxBitmaps
)

// L1 and L2 entries.
const (
	l1EntryBytes         = 8
	l2EntryBytes         = 8
	extendedL2EntryBytes = 16

	entryOffsetMask = 0x00fffffffffffe00
	entryCopied     = 1 << 63 // the refcount of the target is exactly one
	l1ReservedMask  = 0x7f000000000001ff

	l2Compressed   = 1 << 62
	l2Zero         = 1 << 0 // standard entries of version 3 only
	l2ReservedMask = 0x3f000000000001fe
)

// Compression types of the header.
const (
	compressionDeflate = 0
	compressionZstd    = 1
)
