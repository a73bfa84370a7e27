package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// CreateOptions describe a fresh image.
type CreateOptions struct {
	// SizeBytes is the size of the disk: whole sectors of 512 bytes.
	SizeBytes int64
	// ClusterBits is the base-2 logarithm of the cluster size, 9 to 21; 16
	// when zero.
	ClusterBits uint8
	// Bitmap, when set, is an empty bitmap that the image is given.
	Bitmap *BitmapSpec
}

// Writer fills a fresh image: version 3, 16-bit refcounts, without a backing
// file. WriteAt may be called in parallel, Close after all of them. Its memory is
// the L1 table: 8 bytes for each 512 MiB of disk at the default cluster size.
type Writer struct {
	file   File
	header Header
	bitmap *BitmapSpec
	// l2Bits is the base-2 logarithm of how many clusters of the disk one L2
	// table maps.
	l2Bits int

	mu     sync.Mutex
	l1     []uint64 // offsets of L2 tables; 0 where there is none yet
	next   int64    // the first cluster of the file that is not used yet
	failed error    // the first error of a write: the image is incomplete
	closed bool
}

// createWipeBytes are overwritten with zeros first, so that neither an old image
// nor the signature of a file system is left in the target.
const createWipeBytes = 4096

// Create begins a fresh image in f, which may hold anything. The file is no
// qcow2 image until Close has succeeded; a regular file should be empty, because
// what lies behind the image stays there.
func Create(f File, o CreateOptions) (*Writer, error) {
	if o.ClusterBits == 0 {
		o.ClusterBits = 16
	}
	h := Header{Version: 3, ClusterBits: o.ClusterBits, SizeBytes: o.SizeBytes, StoredSizeBytes: o.SizeBytes, RefcountBits: 16}
	if o.ClusterBits < minClusterBits || o.ClusterBits > maxClusterBits {
		return nil, fmt.Errorf("create image: cluster size 2^%d is not between 2^%d and 2^%d", o.ClusterBits, minClusterBits, maxClusterBits)
	}
	if o.SizeBytes < 0 || o.SizeBytes%sectorBytes != 0 {
		return nil, fmt.Errorf("create image: size %d is not a multiple of %d", o.SizeBytes, sectorBytes)
	}
	entries := max(1, o.SizeBytes/h.l2Coverage()+min(1, o.SizeBytes%h.l2Coverage()))
	if entries*l1EntryBytes > maxL1Bytes {
		return nil, fmt.Errorf("create image: clusters of %d bytes are too small for a disk of %d: %w", h.ClusterBytes(), o.SizeBytes, ErrUnsupported)
	}
	if o.Bitmap != nil {
		if err := h.checkSpec(*o.Bitmap); err != nil {
			return nil, fmt.Errorf("create image: %w", err)
		}
	}
	h.L1Entries, h.L1Offset = uint32(entries), h.ClusterBytes()
	w := &Writer{file: f, header: h, bitmap: o.Bitmap, l2Bits: int(o.ClusterBits) - 3, l1: make([]uint64, entries)}
	w.next = 1 + w.clusters(entries*l1EntryBytes)
	if err := writeZeros(f, 0, createWipeBytes, "header"); err != nil {
		return nil, err
	}
	return w, syncFile(f)
}

// clusters returns how many clusters n bytes take.
func (w *Writer) clusters(n int64) int64 {
	return (n + w.header.ClusterBytes() - 1) >> w.header.ClusterBits
}

// WriteAt writes whole clusters of the disk, each at most once; only at the end
// of the disk may the last one be short. Clusters that are never written read as
// zeros. After an error the image cannot be finished. p is not kept.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	clusterBytes := w.header.ClusterBytes()
	end := off + int64(len(p))
	if off < 0 || off&(clusterBytes-1) != 0 || end > w.header.SizeBytes || end&(clusterBytes-1) != 0 && end != w.header.SizeBytes {
		return 0, fmt.Errorf("write %d bytes at %d of a disk of %d bytes: not whole clusters of the disk", len(p), off, w.header.SizeBytes)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		room := w.header.l2Coverage() - at%w.header.l2Coverage()
		piece := p[done:min(int64(len(p)), int64(done)+room)]
		if err := w.write(piece, at); err != nil {
			w.mu.Lock()
			w.failed = errors.Join(w.failed, err)
			w.mu.Unlock()
			return done, err
		}
		done += len(piece)
	}
	return done, nil
}

// write writes clusters that one L2 table maps: first the data, then the entries.
func (w *Writer) write(p []byte, off int64) error {
	h := &w.header
	first := off >> h.ClusterBits
	count := w.clusters(int64(len(p)))
	table, host, err := w.allocate(first>>w.l2Bits, count)
	if err != nil {
		return err
	}
	at := table + first&(1<<w.l2Bits-1)*l2EntryBytes
	entries := make([]byte, count*l2EntryBytes)
	if _, err := w.file.ReadAt(entries, at); err != nil {
		return readFailed("L2 table", at, err)
	}
	if !isZero(entries) {
		return fmt.Errorf("write %d bytes at %d: part of it was written before", len(p), off)
	}
	whole := len(p) &^ int(h.ClusterBytes()-1)
	if err := writeAt(w.file, p[:whole], host, "data cluster"); err != nil {
		return err
	}
	if whole < len(p) {
		last := make([]byte, h.ClusterBytes())
		copy(last, p[whole:])
		if err := writeAt(w.file, last, host+int64(whole), "data cluster"); err != nil {
			return err
		}
	}
	for i := range count {
		binary.BigEndian.PutUint64(entries[i*l2EntryBytes:], uint64(host+i<<h.ClusterBits)|entryCopied)
	}
	return writeAt(w.file, entries, at, "L2 table")
}

// allocate returns the offset of an L2 table, which it makes when it is not there
// yet, and of count new clusters.
func (w *Writer) allocate(slot, count int64) (table, host int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, 0, errors.New("write to an image that is closed")
	}
	if w.l1[slot] == 0 {
		at := w.next << w.header.ClusterBits
		// The target may be a device that holds old data.
		if err := writeZeros(w.file, at, w.header.ClusterBytes(), "L2 table"); err != nil {
			return 0, 0, err
		}
		w.next++
		w.l1[slot] = uint64(at)
	}
	host = w.next << w.header.ClusterBits
	w.next += count
	return int64(w.l1[slot]), host, nil
}

// Close completes the image: tables and refcounts, then the header, then its
// magic number, with a Sync after each. It fails when any write has failed. The
// caller closes f.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errors.New("close image: it is closed")
	}
	w.closed = true
	if w.failed != nil {
		return fmt.Errorf("close image that is incomplete: %w", w.failed)
	}
	var extension []byte
	if w.bitmap != nil {
		var err error
		if extension, err = w.writeBitmap(*w.bitmap); err != nil {
			return err
		}
	}
	if err := w.writeL1(); err != nil {
		return err
	}
	if err := w.writeRefcounts(); err != nil {
		return err
	}
	if err := syncFile(w.file); err != nil {
		return err
	}
	return w.writeHeader(extension)
}

// take hands out clusters for n bytes at the end.
func (w *Writer) take(n int64) int64 {
	at := w.next << w.header.ClusterBits
	w.next += w.clusters(n)
	return at
}

// writeBitmap writes table and directory, and returns the header extension.
func (w *Writer) writeBitmap(spec BitmapSpec) ([]byte, error) {
	b := w.header.entry(spec)
	tableBytes := int64(b.TableEntries) * bitmapTableEntryBytes
	b.TableOffset = w.take(tableBytes)
	if err := writeZeros(w.file, b.TableOffset, w.clusters(tableBytes)<<w.header.ClusterBits, "bitmap table"); err != nil {
		return nil, err
	}
	dir := appendBitmapEntry(nil, b)
	at := w.take(int64(len(dir)))
	w.header.Autoclear |= autoclearBitmaps
	x := appendBitmapsExtension(nil, directory{count: 1, bytes: int64(len(dir)), offset: at})
	return x, writeAt(w.file, w.pad(dir), at, "bitmap directory")
}

// pad returns b with zeros up to a whole number of clusters.
func (w *Writer) pad(b []byte) []byte {
	return append(b, make([]byte, w.clusters(int64(len(b)))<<w.header.ClusterBits-int64(len(b)))...)
}

func (w *Writer) writeL1() error {
	b := make([]byte, 0, w.clusters(int64(len(w.l1))*l1EntryBytes)<<w.header.ClusterBits)
	for _, at := range w.l1 {
		if at != 0 {
			at |= entryCopied
		}
		b = binary.BigEndian.AppendUint64(b, at)
	}
	return writeAt(w.file, w.pad(b), w.header.L1Offset, "L1 table")
}

// writeRefcounts counts every cluster of the file once, also those of the
// refcount blocks and their table. Both are sized for each other.
func (w *Writer) writeRefcounts() error {
	h := &w.header
	perBlock := h.ClusterBytes() * 8 / int64(h.RefcountBits)
	blocks, table := int64(0), int64(0)
	for {
		needBlocks := (w.next + blocks + table + perBlock - 1) / perBlock
		needTable := w.clusters(needBlocks * refcountTableEntryBytes)
		if needBlocks == blocks && needTable == table {
			break
		}
		blocks, table = needBlocks, needTable
	}
	if table<<h.ClusterBits > maxRefcountTableBytes {
		return fmt.Errorf("refcount table of %d clusters: clusters of %d bytes are too small for this file: %w", table, h.ClusterBytes(), ErrUnsupported)
	}
	at := w.take(blocks << h.ClusterBits)
	h.RefcountTableOffset, h.RefcountTableClusters = w.take(table<<h.ClusterBits), uint32(table)
	var entries []byte
	block := make([]byte, h.ClusterBytes())
	for i := range perBlock {
		setRefcountAt(block, h.RefcountBits, i, 1)
	}
	for no := range blocks {
		for i := w.next - no*perBlock; i < perBlock; i++ {
			setRefcountAt(block, h.RefcountBits, i, 0)
		}
		place := at + no<<h.ClusterBits
		if err := writeAt(w.file, block, place, "refcount block"); err != nil {
			return err
		}
		entries = binary.BigEndian.AppendUint64(entries, uint64(place))
	}
	return writeAt(w.file, w.pad(entries), h.RefcountTableOffset, "refcount table")
}

// createHeaderBytes is the length of the header that QEMU writes since 5.1.
const createHeaderBytes = 112

// writeHeader writes the first cluster without its first four bytes, and those
// after it is durable: a torn header has no magic number.
func (w *Writer) writeHeader(extension []byte) error {
	h := &w.header
	b := make([]byte, h.ClusterBytes())
	be := binary.BigEndian
	be.PutUint32(b[headerMagic:], magic)
	be.PutUint32(b[headerVersion:], h.Version)
	be.PutUint32(b[headerClusterBits:], uint32(h.ClusterBits))
	be.PutUint64(b[headerSize:], uint64(h.StoredSizeBytes))
	be.PutUint32(b[headerL1Entries:], h.L1Entries)
	be.PutUint64(b[headerL1Offset:], uint64(h.L1Offset))
	be.PutUint64(b[headerRefcountTableOffset:], uint64(h.RefcountTableOffset))
	be.PutUint32(b[headerRefcountTableClusters:], h.RefcountTableClusters)
	be.PutUint64(b[headerAutoclear:], h.Autoclear)
	be.PutUint32(b[headerRefcountOrder:], refcountOrderV2)
	be.PutUint32(b[headerLength:], createHeaderBytes)
	copy(b[createHeaderBytes:], extension)
	if _, err := ParseHeader(b, w.next<<h.ClusterBits); err != nil {
		return fmt.Errorf("check the new header: %w", err)
	}
	if err := writeAt(w.file, b[headerVersion:], headerVersion, "header"); err != nil {
		return err
	}
	if err := syncFile(w.file); err != nil {
		return err
	}
	if err := writeAt(w.file, b[:headerVersion], headerMagic, "header"); err != nil {
		return err
	}
	return syncFile(w.file)
}
