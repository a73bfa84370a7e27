package format

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Frame is a compressed frame on its way into a pack.
type Frame struct {
	Disk       uint16
	FirstBlock int64
	Compressed []byte
	Hashes     []BlockHash // of its blocks, 1 to 16; their number is the number of blocks
}

// PackWriter builds one pack in one buffer. It is for one goroutine.
type PackWriter struct {
	header     PackHeader
	capBytes   int
	buf        []byte // header and frames
	index      []byte
	entries    uint32
	dataBlocks uint32
	lastZero   int // where in index the last entry begins if it is ZERO, else -1
	err        error
}

// SealedPack is a finished pack. Its slices are parts of the writer's buffer and
// hold until the writer's next Reset.
type SealedPack struct {
	Seq   uint32
	Bytes []byte     // the whole object
	Entry PackEntry  // for the manifest
	Index *PackIndex // parsed back from Bytes
	Tail  []byte     // index and footer: Bytes[Entry.IndexOffset:], what an index cache keeps
}

// NewPackWriter begins a pack that will have at most capBytes (MaxObjectBytes at
// most). All memory is taken here. A header or limit out of range is reported by
// the first call that can fail.
func NewPackWriter(h PackHeader, capBytes int) *PackWriter {
	w := &PackWriter{capBytes: capBytes}
	if capBytes < PackHeaderBytes+MinPackTailBytes || capBytes > MaxObjectBytes {
		w.err = invalid("pack", "a limit of %d bytes is out of range", capBytes)
		return w
	}
	w.buf = make([]byte, 0, capBytes)
	w.Reset(h)
	return w
}

// Reset begins another pack in the same buffer; the last sealed pack is overwritten.
func (w *PackWriter) Reset(h PackHeader) {
	if w.buf == nil {
		return // the limit was refused; that error stays
	}
	w.header, w.err = h, h.validate()
	w.buf, w.index = h.append(w.buf[:0]), w.index[:0]
	w.entries, w.dataBlocks, w.lastZero = 0, 0, -1
}

// Len gives the length that the pack would have if it were sealed now.
func (w *PackWriter) Len() int { return len(w.buf) + len(w.index) + MinPackTailBytes }

// Empty reports whether the pack says nothing yet.
func (w *PackWriter) Empty() bool { return w.entries == 0 }

// Fits reports whether a frame of so many blocks and compressed bytes has room.
func (w *PackWriter) Fits(blocks, compressedBytes int) bool {
	return w.Len()+indexEntryBytes+blocks*blockHashBytes+compressedBytes <= w.capBytes
}

// AppendFrame copies a frame into the pack and gives the ordinal of its first
// block. ErrPackFull: nothing was changed, seal this pack and begin the next.
func (w *PackWriter) AppendFrame(f Frame) (firstOrdinal uint32, err error) {
	if w.err != nil {
		return 0, w.err
	}
	if err := checkFrame(f.FirstBlock, int64(len(f.Hashes)), int64(len(f.Compressed)), w.header.BlockBytes); err != nil {
		return 0, err
	}
	if !w.Fits(len(f.Hashes), len(f.Compressed)) {
		return 0, fmt.Errorf("append a frame of %d bytes: %w", len(f.Compressed), ErrPackFull)
	}
	w.buf = append(w.buf, f.Compressed...)
	w.index = indexEntry{
		disk: f.Disk, kind: kindData, first: uint64(f.FirstBlock),
		blocks: uint32(len(f.Hashes)), length: uint32(len(f.Compressed)),
	}.append(w.index)
	for i := range f.Hashes {
		w.index = append(w.index, f.Hashes[i][:]...)
	}
	firstOrdinal = w.dataBlocks
	w.entries++
	w.dataBlocks += uint32(len(f.Hashes))
	w.lastZero = -1
	return firstOrdinal, nil
}

// AppendZero notes that a range of a disk reads as zero. Ranges that continue the
// one before grow it. ErrPackFull as for AppendFrame.
func (w *PackWriter) AppendZero(disk uint16, first, blocks int64) error {
	if w.err != nil {
		return w.err
	}
	if blocks < 1 || first < 0 || first > MaxDiskBlocks || blocks > MaxDiskBlocks-first {
		return invalid("pack", "a range of zeros of %d blocks from %d on lies on no disk", blocks, first)
	}
	var grown int64
	if w.lastZero >= 0 {
		last := decodeIndexEntry(w.index[w.lastZero:])
		if last.disk == disk && int64(last.first)+int64(last.blocks) == first {
			grown = min(blocks, math.MaxUint32-int64(last.blocks))
		}
	}
	more := (blocks - grown + math.MaxUint32 - 1) / math.MaxUint32
	if int64(w.Len())+more*indexEntryBytes > int64(w.capBytes) {
		return fmt.Errorf("append a range of zeros: %w", ErrPackFull)
	}
	if grown > 0 {
		count := w.index[w.lastZero+12:]
		binary.BigEndian.PutUint32(count, binary.BigEndian.Uint32(count)+uint32(grown))
		first, blocks = first+grown, blocks-grown
	}
	for blocks > 0 {
		n := min(blocks, math.MaxUint32)
		w.lastZero = len(w.index)
		w.index = indexEntry{disk: disk, kind: kindZero, first: uint64(first), blocks: uint32(n)}.append(w.index)
		w.entries++
		first, blocks = first+n, blocks-n
	}
	return nil
}

// Seal writes index and footer and reads header, index and footer back. The writer
// takes nothing more until Reset.
func (w *PackWriter) Seal() (SealedPack, error) {
	if w.err != nil {
		return SealedPack{}, w.err
	}
	w.err = invalid("pack", "it was sealed; begin the next with Reset")
	f := packFooter{
		indexOffset: uint32(len(w.buf)),
		indexBytes:  uint32(len(w.index)),
		entries:     w.entries,
		dataBlocks:  w.dataBlocks,
		indexHash:   SumHash(w.index),
	}
	b := appendSkippable(w.buf, skippableIndexMagic, len(w.index)+PackFooterBytes)
	b = append(b, w.index...)
	b = f.appendUnhashed(b)
	f.packHash = SumHash(b)
	b = append(append(b, f.packHash[:]...), packFooterMagic...)
	w.buf = b
	back, err := parsePackFooter(b[len(b)-PackFooterBytes:])
	if err == nil && back != f {
		err = invalid("pack footer", "what was read back differs from what was written")
	}
	if err != nil {
		return SealedPack{}, fmt.Errorf("read back the footer of pack %d: %w", w.header.Seq, err)
	}
	header, entry, index, err := parsePackParts(b, back)
	if err == nil && header != w.header {
		err = invalid("pack header", "what was read back differs from what was written")
	}
	if err != nil {
		return SealedPack{}, fmt.Errorf("read back pack %d: %w", w.header.Seq, err)
	}
	return SealedPack{Seq: header.Seq, Bytes: b, Entry: entry, Index: index, Tail: b[entry.IndexOffset:]}, nil
}
