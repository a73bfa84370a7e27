package format

// Version is the number of the format in every object. Bytes of another version
// are refused with ErrUnsupported.
const Version = 1

// Block and frame geometry. Block n of a disk is bytes [n*B, (n+1)*B); the last,
// partial block of a disk is padded with zeros to B.
const (
	DefaultBlockBytes = 64 << 10
	MinBlockBytes     = 16 << 10
	MaxBlockBytes     = 1 << 20

	// WindowBytes is the aligned range of a disk that one frame stays within. It
	// bounds what a reader decompresses for one block, and what a compressor
	// remembers.
	WindowBytes = 1 << 20
	// MaxFrameBlocks is the most blocks of one frame, whatever their size.
	MaxFrameBlocks = 16
)

// Sizes of objects.
const (
	// MaxDocumentBytes keeps every document under 64 KiB: servers answer a refused
	// conditional PUT of that size cleanly, larger ones are sometimes cut off.
	MaxDocumentBytes = 64<<10 - 1
	// MaxObjectBytes bounds packs, map objects and manifests: each is one PUT.
	MaxObjectBytes = 32 << 20
	// TargetPackBytes is the size at which a writer closes a pack.
	TargetPackBytes = 16 << 20
)

// Limits of numbers.
const (
	// MaxSeq is the last sequence number of packs and map objects of a run: what
	// eight decimal digits of a key hold.
	MaxSeq = 99_999_999
	// MaxNumber is the last number of a renewal or a verdict: four digits. Hourly
	// renewals of one run need four digits for 416 days.
	MaxNumber = 9999
	// MaxGeneration is the last generation of the descriptor: eight digits.
	MaxGeneration = 99_999_999
	// MaxDiskBlocks is the number of blocks of the largest disk: 2^63 bytes in the
	// smallest blocks.
	MaxDiskBlocks = 1 << 49
	// MaxDiskOrdinal is the last disk ordinal of a record.
	MaxDiskOrdinal = 65534
	// ExtrasOrdinal is what packs call the extras of a machine.
	ExtrasOrdinal = 65535
	// MaxExtras bounds the extra files of a record.
	MaxExtras = 64
	// MaxExtrasBytes bounds the extra files together: firmware variables are the
	// largest of them, 64 MiB at most on any machine that QEMU has.
	MaxExtrasBytes = 256 << 20
	// MaxPackBlocks is more data blocks than an index in one object can have hashes.
	MaxPackBlocks = MaxObjectBytes / blockHashBytes
	// MaxDependencies bounds the runs that one point refers to.
	MaxDependencies = 65536
	// MaxTextBytes bounds one string of a document.
	MaxTextBytes = 4096
)

// Pack. The header lies in a skippable frame of zstd (RFC 8878, section 3.1.2),
// then come the frames, then a second skippable frame with index and footer.
const (
	skippableHeaderMagic = 0x184D2A51
	skippableIndexMagic  = 0x184D2A52
	skippableBytes       = 8

	packHeaderMagic = "QBPK"
	packFooterMagic = "QBPKEND1"

	// PackHeaderBytes is the length of a pack's header with its skippable frame:
	// the offset of the first frame.
	PackHeaderBytes = 128
	// PackFooterBytes is the length of a pack's last field.
	PackFooterBytes = 88
	// MinPackTailBytes is the length of the shortest tail: a skippable frame with
	// an empty index and the footer.
	MinPackTailBytes = skippableBytes + PackFooterBytes

	indexEntryBytes = 20
	blockHashBytes  = 16

	kindData = 1
	kindZero = 2
)

// Map objects and nodes.
const (
	mapMagic  = "QBMP"
	nodeMagic = "QBND"

	// MapHeaderBytes is the length of a map object's header: the offset of its
	// first node.
	MapHeaderBytes = 64
	// NodeFanout is the number of blocks of a leaf and of children of an inner node.
	NodeFanout     = 1024
	nodeFanoutBits = 10
	// MaxLevels is the height of the tallest tree: 1024^5 blocks exceed MaxDiskBlocks.
	MaxLevels = 5

	nodeHeaderBytes = 24
	nodeRunBytes    = 16
	leafSpanBytes   = 16
	childBytes      = 48

	// MaxNodeBytes is the length of the largest node: an inner node whose children
	// all belong to different runs.
	MaxNodeBytes = nodeHeaderBytes + NodeFanout*(nodeRunBytes+childBytes)
	// MinNodeBytes is the length of the smallest: a leaf with one ZERO span.
	MinNodeBytes = nodeHeaderBytes + leafSpanBytes

	spanData = 1
	spanZero = 2
)

// Manifest.
const (
	manifestMagic         = "QBMF"
	manifestHeaderBytes   = 72
	manifestPackBytes     = 48
	manifestMapBytes      = 40
	manifestRunBytes      = 48
	manifestTrailerBytes  = 32
	minManifestTotalBytes = manifestHeaderBytes + manifestTrailerBytes
)

// MaxFrameBytes gives the greatest length of a compressed frame of rawBytes: data
// that does not compress is stored as raw blocks of zstd, which add 3 bytes for
// each 128 KiB and a header.
func MaxFrameBytes(rawBytes int64) int64 { return rawBytes + rawBytes/128 + 512 }

// CheckBlockBytes says whether n is a block size of the format: a power of two
// from 16 KiB to 1 MiB.
func CheckBlockBytes(n int64) error {
	if n < MinBlockBytes || n > MaxBlockBytes || n&(n-1) != 0 {
		return invalid("block size", "%d bytes is no power of two from 16 KiB to 1 MiB", n)
	}
	return nil
}

// FrameBlocks gives the most blocks of one frame at a block size: as many as one
// window holds, and at most 16.
func FrameBlocks(blockBytes int64) int {
	return int(min(WindowBytes/blockBytes, MaxFrameBlocks))
}

// Blocks gives the number of blocks of a disk, the last one perhaps partial.
func Blocks(sizeBytes, blockBytes int64) int64 {
	n := sizeBytes / blockBytes
	if sizeBytes%blockBytes != 0 {
		n++
	}
	return n
}

// NodeBlocks gives the number of blocks that a node of a level covers; a leaf has
// level 0.
func NodeBlocks(level int) int64 { return 1 << (nodeFanoutBits * (level + 1)) }

// TreeLevels gives the height of the lowest tree that covers so many blocks: 1 is
// a single leaf. No blocks need no tree: 0.
func TreeLevels(blocks int64) int {
	if blocks <= 0 {
		return 0
	}
	levels := 1
	for levels < MaxLevels && NodeBlocks(levels-1) < blocks {
		levels++
	}
	return levels
}
