package qcow2

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// defaultCacheBytes holds the L2 tables of 128 GiB of disk at the default
// cluster size.
const defaultCacheBytes = 16 << 20

// ImageOptions are the choices of OpenImage. The zero value is usable.
type ImageOptions struct {
	// CacheBytes bounds the memory for L2 tables; 16 MiB when zero. Two
	// tables are held whatever it says.
	CacheBytes int64
}

// Image is one qcow2 file, without the files it refers to. It is safe for
// parallel use, and describes the file as it was when it was opened.
type Image struct {
	file      File
	header    *Header
	fileBytes int64
	// dataBytes is the length of the file that data clusters lie in: the
	// external data file where there is one, which only a Disk opens. Until
	// then it is the largest that an entry can hold.
	dataBytes int64
	l1        []uint64
	tables    *tableCache
	snapshots []Snapshot
	// snapshotsEnd is where the snapshot table ends in the file.
	snapshotsEnd int64
}

// OpenImage reads header, active L1 table and snapshot table, and checks them.
// It opens images that are marked dirty or corrupt, see Header.CheckTrust. The
// caller keeps f, and closes it after the last use of the image.
func OpenImage(f File, o ImageOptions) (*Image, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, readFailed("header", -1, err)
	}
	m := &Image{file: f, header: h, fileBytes: size, dataBytes: size}
	if h.ExternalData() {
		m.dataBytes = maxHostOffset
	}
	if err := m.readL1(); err != nil {
		return nil, err
	}
	if err := m.checkL1Entries(); err != nil {
		return nil, err
	}
	if err := m.readSnapshots(); err != nil {
		return nil, err
	}
	budget := o.CacheBytes
	if budget <= 0 {
		budget = defaultCacheBytes
	}
	m.tables = newTableCache(budget, h.ClusterBytes(), len(m.l1))
	return m, nil
}

// Header returns the header as it was read. It must not be changed.
func (m *Image) Header() *Header { return m.header }

// Size returns the size of the disk in bytes.
func (m *Image) Size() int64 { return m.header.SizeBytes }

// File returns the file the image was opened on.
func (m *Image) File() File { return m.file }

// ActiveL1Hash returns the SHA-256 of the place and the entries of the active
// L1 table. It changes when an L2 table is added or moved and when another
// snapshot becomes the active state; writes into known L2 tables leave it. The
// flag that says whether an L2 table has a single owner is left out: taking or
// deleting an internal snapshot changes it, and no byte of the disk.
func (m *Image) ActiveL1Hash() [32]byte {
	sum := sha256.New()
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(m.header.L1Offset))
	sum.Write(b[:])
	for _, e := range m.l1 {
		binary.BigEndian.PutUint64(b[:], e&^entryCopied)
		sum.Write(b[:])
	}
	return [32]byte(sum.Sum(nil))
}

// readL1 reads the active L1 table, in pieces so that it is held only once.
func (m *Image) readL1() error {
	m.l1 = make([]uint64, m.header.L1Entries)
	piece := make([]byte, min(64<<10, len(m.l1)*l1EntryBytes))
	for i := 0; i < len(m.l1); {
		b := piece[:min(len(piece), (len(m.l1)-i)*l1EntryBytes)]
		at := m.header.L1Offset + int64(i)*l1EntryBytes
		if err := readPadded(m.file, b, at, m.fileBytes); err != nil {
			return readFailed("L1 table", at, err)
		}
		for ; len(b) > 0; b = b[l1EntryBytes:] {
			m.l1[i] = binary.BigEndian.Uint64(b)
			i++
		}
	}
	return nil
}

// checkL1Entries checks every entry: its L2 table lies inside the file, on no
// other table, and belongs to no other entry. With that, the L2 tables of an
// image cannot be larger than its file, however large the disk claims to be.
func (m *Image) checkL1Entries() error {
	h := m.header
	l1Bytes := int64(len(m.l1)) * l1EntryBytes
	refcountBytes := int64(h.RefcountTableClusters) << h.ClusterBits
	var used []int64
	for i, e := range m.l1 {
		place := h.L1Offset + int64(i)*l1EntryBytes
		if e&l1ReservedMask != 0 {
			return corrupt("L1 table", place, "entry %d has reserved bits: %#016x", i, e)
		}
		at := int64(e & entryOffsetMask)
		if at == 0 {
			continue
		}
		if err := h.checkTable("L2 table", at, h.ClusterBytes(), m.fileBytes); err != nil {
			return err
		}
		if overlap(at, h.ClusterBytes(), h.L1Offset, l1Bytes) || overlap(at, h.ClusterBytes(), h.RefcountTableOffset, refcountBytes) {
			return corrupt("L2 table", at, "named by L1 entry %d, it overlaps the L1 table or the refcount table", i)
		}
		used = append(used, at)
	}
	slices.Sort(used)
	for i := 1; i < len(used); i++ {
		if used[i] == used[i-1] {
			return corrupt("L2 table", used[i], "two L1 entries share it")
		}
	}
	return nil
}

// overlap tells whether [a, a+n) and [b, b+k) share a byte.
func overlap(a, n, b, k int64) bool { return n > 0 && k > 0 && a < b+k && b < a+n }
