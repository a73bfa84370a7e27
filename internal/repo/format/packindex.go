package format

import (
	"encoding/binary"
	"iter"
	"math"
	"sort"
)

// IndexedFrame is one frame of a pack as its index describes it.
type IndexedFrame struct {
	Offset       int64  // of the compressed bytes in the pack
	Length       int64  // of the compressed bytes
	FirstOrdinal uint32 // ordinal of its first block
	Blocks       int    // 1 to 16
	Disk         uint16 // ordinal of the disk in the run's record
	FirstBlock   int64  // place of its first block on that disk
}

// ZeroRange is a range of a disk that the run found to read as zero.
type ZeroRange struct {
	Disk       uint16
	FirstBlock int64
	Blocks     int64
}

// PackIndex says what each block of a pack is and where it lies. It does not change
// after it was parsed and may be read from several goroutines.
type PackIndex struct {
	frames []IndexedFrame
	zeros  []ZeroRange
	hashes []byte // BlockHash after BlockHash, by ordinal
}

// indexEntry is one entry without its hashes, big-endian:
//
//	0    2  disk ordinal
//	2    1  kind: 1 DATA, 2 ZERO
//	3    1  flags, 0
//	4    8  first block
//	12   4  number of blocks
//	16   4  length of the compressed frame; 0 for ZERO
//	20  16  hash of each block, DATA only
//
// Entries stand in the order of the frames, which lie back to back from the end of
// the header on: offsets follow from lengths, and so cannot contradict them.
type indexEntry struct {
	disk        uint16
	kind, flags byte
	first       uint64
	blocks      uint32
	length      uint32
}

func (e indexEntry) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, e.disk)
	dst = append(dst, e.kind, e.flags)
	dst = binary.BigEndian.AppendUint64(dst, e.first)
	dst = binary.BigEndian.AppendUint32(dst, e.blocks)
	return binary.BigEndian.AppendUint32(dst, e.length)
}

func decodeIndexEntry(b []byte) indexEntry {
	return indexEntry{
		disk:   binary.BigEndian.Uint16(b),
		kind:   b[2],
		flags:  b[3],
		first:  binary.BigEndian.Uint64(b[4:]),
		blocks: binary.BigEndian.Uint32(b[12:]),
		length: binary.BigEndian.Uint32(b[16:]),
	}
}

// ParsePackIndex reads the tail of a pack, the bytes from e.IndexOffset to its end,
// and checks it against the manifest's entry: lengths, counts, the hash of the
// index. The result shares no memory with tail.
func ParsePackIndex(tail []byte, e PackEntry, blockBytes int64) (*PackIndex, error) {
	const what = "pack index"
	if err := e.validate(); err != nil {
		return nil, err
	}
	if err := CheckBlockBytes(blockBytes); err != nil {
		return nil, err
	}
	if int64(len(tail)) != e.Bytes-int64(e.IndexOffset) {
		return nil, corrupt(what, -1, "%d bytes where the manifest says %d", len(tail), e.Bytes-int64(e.IndexOffset))
	}
	if err := checkSkippable(what, tail, skippableIndexMagic, len(tail)-skippableBytes); err != nil {
		return nil, err
	}
	entries := tail[skippableBytes : len(tail)-PackFooterBytes]
	f, err := parsePackFooter(tail[len(tail)-PackFooterBytes:])
	if err != nil {
		return nil, err
	}
	switch {
	case SumHash(entries) != e.IndexHash:
		return nil, corrupt(what, skippableBytes, "its hash does not match the manifest")
	case f.indexHash != e.IndexHash || f.indexOffset != e.IndexOffset || f.dataBlocks != e.DataBlocks:
		return nil, corrupt("pack footer", 0, "it contradicts the manifest")
	case int64(f.indexBytes) != int64(len(entries)):
		return nil, corrupt("pack footer", 4, "it says %d bytes of index where %d are", f.indexBytes, len(entries))
	}
	return parseIndexEntries(entries, f, blockBytes)
}

func parseIndexEntries(b []byte, f packFooter, blockBytes int64) (*PackIndex, error) {
	const what = "pack index"
	// Both counts are bounded by the bytes at hand before anything is allocated.
	if int64(f.entries)*indexEntryBytes > int64(len(b)) || int64(f.dataBlocks)*blockHashBytes > int64(len(b)) {
		return nil, corrupt("pack footer", 8, "%d entries with %d data blocks do not fit %d bytes of index", f.entries, f.dataBlocks, len(b))
	}
	x := &PackIndex{hashes: make([]byte, 0, int(f.dataBlocks)*blockHashBytes), frames: make([]IndexedFrame, 0, f.entries)}
	offset, at := int64(PackHeaderBytes), 0
	for n := uint32(0); n < f.entries; n++ {
		if len(b)-at < indexEntryBytes {
			return nil, corrupt(what, at, "entry %d does not fit", n)
		}
		e := decodeIndexEntry(b[at:])
		if e.flags != 0 {
			return nil, unsupported(what, "entry %d has the flags %#x, which this program does not know", n, e.flags)
		}
		if e.blocks == 0 || e.first > MaxDiskBlocks || uint64(e.blocks) > MaxDiskBlocks-e.first {
			return nil, corrupt(what, at+4, "blocks %d+%d lie on no disk", e.first, e.blocks)
		}
		used, err := x.addEntry(e, b[at+indexEntryBytes:], offset, blockBytes)
		if err != nil {
			return nil, corrupt(what, at, "entry %d: %v", n, err)
		}
		at, offset = at+indexEntryBytes+used, offset+int64(e.length)
	}
	switch {
	case at != len(b):
		return nil, corrupt(what, at, "%d bytes follow the last entry", len(b)-at)
	case x.DataBlocks() != f.dataBlocks:
		return nil, corrupt(what, -1, "%d data blocks where the footer says %d", x.DataBlocks(), f.dataBlocks)
	case offset != int64(f.indexOffset):
		return nil, corrupt(what, -1, "the frames end at byte %d, the index begins at %d", offset, f.indexOffset)
	}
	return x, nil
}

// addEntry takes one entry and the bytes after it, and gives how many of these
// belong to it.
func (x *PackIndex) addEntry(e indexEntry, after []byte, offset, blockBytes int64) (used int, err error) {
	const what = "pack index"
	switch e.kind {
	case kindZero:
		if e.length != 0 {
			return 0, corrupt(what, -1, "a ZERO entry has %d bytes of data", e.length)
		}
		x.zeros = append(x.zeros, ZeroRange{Disk: e.disk, FirstBlock: int64(e.first), Blocks: int64(e.blocks)})
		return 0, nil
	case kindData:
		if err := checkFrame(int64(e.first), int64(e.blocks), int64(e.length), blockBytes); err != nil {
			return 0, err
		}
		used = int(e.blocks) * blockHashBytes
		if len(after) < used {
			return 0, corrupt(what, -1, "its hashes do not fit")
		}
		x.frames = append(x.frames, IndexedFrame{
			Offset: offset, Length: int64(e.length), FirstOrdinal: x.DataBlocks(),
			Blocks: int(e.blocks), Disk: e.disk, FirstBlock: int64(e.first),
		})
		x.hashes = append(x.hashes, after[:used]...)
		return used, nil
	}
	return 0, corrupt(what, -1, "unknown kind %d", e.kind)
}

// checkFrame checks the geometry of a frame: 1 to 16 blocks within one window, and
// a compressed length that its blocks can have.
func checkFrame(first, blocks, length, blockBytes int64) error {
	perWindow := WindowBytes / blockBytes
	switch {
	case blocks < 1 || blocks > int64(FrameBlocks(blockBytes)) || first < 0 || first > MaxDiskBlocks-blocks:
		return invalid("frame", "%d blocks from block %d on do not make a frame", blocks, first)
	case first/perWindow != (first+blocks-1)/perWindow:
		return invalid("frame", "blocks %d+%d do not lie within one aligned window of 1 MiB", first, blocks)
	case length < 1 || length > MaxFrameBytes(blocks*blockBytes):
		return invalid("frame", "%d bytes are no length for %d blocks", length, blocks)
	}
	return nil
}

// DataBlocks gives the number of data blocks: their ordinals count from 0.
func (x *PackIndex) DataBlocks() uint32 {
	n := len(x.hashes) / blockHashBytes
	if n > math.MaxUint32 {
		panic("format: an index of a pack holds more hashes than its bytes")
	}
	return uint32(n)
}

// Frame gives the frame that holds a data block; false when the pack has no such
// ordinal.
func (x *PackIndex) Frame(ordinal uint32) (IndexedFrame, bool) {
	if ordinal >= x.DataBlocks() {
		return IndexedFrame{}, false
	}
	n := sort.Search(len(x.frames), func(i int) bool { return x.frames[i].FirstOrdinal > ordinal })
	return x.frames[n-1], true
}

// Hash gives the hash of a data block; false when the pack has no such ordinal.
func (x *PackIndex) Hash(ordinal uint32) (BlockHash, bool) {
	if ordinal >= x.DataBlocks() {
		return BlockHash{}, false
	}
	return BlockHash(x.hashes[int(ordinal)*blockHashBytes:]), true
}

// Frames gives all frames in the order of the pack.
func (x *PackIndex) Frames() iter.Seq[IndexedFrame] {
	return func(yield func(IndexedFrame) bool) {
		for _, f := range x.frames {
			if !yield(f) {
				return
			}
		}
	}
}

// Zeros gives all ranges that read as zero in the order of the pack.
func (x *PackIndex) Zeros() iter.Seq[ZeroRange] {
	return func(yield func(ZeroRange) bool) {
		for _, z := range x.zeros {
			if !yield(z) {
				return
			}
		}
	}
}

// SizeBytes gives the memory that the index takes, for caches with a budget.
func (x *PackIndex) SizeBytes() int64 {
	return int64(cap(x.hashes)) + int64(cap(x.frames))*48 + int64(cap(x.zeros))*24
}
