package qcow2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
)

// Snapshot is one of QEMU's internal snapshots, of which only the table is
// read: QEMU docs/interop/qcow2.txt, "Snapshots".
type Snapshot struct {
	ID, Name  string
	L1Offset  int64
	L1Entries uint32
	// DiskBytes is the size of the disk in that state.
	DiskBytes int64
	// Seconds and Nanoseconds are the time it was taken, since 1970.
	Seconds, Nanoseconds uint32
}

// Byte offsets within a snapshot table entry, and within its extra data.
const (
	snapshotL1Offset    = 0  // uint64
	snapshotL1Entries   = 8  // uint32
	snapshotIDBytes     = 12 // uint16
	snapshotNameBytes   = 14 // uint16
	snapshotSeconds     = 16 // uint32
	snapshotNanoseconds = 20 // uint32
	snapshotExtraBytes  = 36 // uint32; extra data, id and name follow
	snapshotFixedBytes  = 40

	snapshotExtraDisk = 8 // uint64
)

// Snapshots returns the internal snapshots in the order of the table. The
// slice must not be changed.
func (m *Image) Snapshots() []Snapshot { return m.snapshots }

// SnapshotTable returns the range of the snapshot table in the file; both are 0
// without snapshots.
func (m *Image) SnapshotTable() (offset, end int64) {
	if len(m.snapshots) == 0 {
		return 0, 0
	}
	return m.header.SnapshotsOffset, m.snapshotsEnd
}

// readSnapshots reads and checks the snapshot table.
func (m *Image) readSnapshots() error {
	h := m.header
	if h.SnapshotCount == 0 {
		return nil
	}
	room := min(m.fileBytes-h.SnapshotsOffset, maxSnapshotTableBytes)
	r := bufio.NewReader(io.NewSectionReader(m.file, h.SnapshotsOffset, room))
	list, n, err := parseSnapshots(r, h)
	if err != nil {
		return err
	}
	for _, s := range list {
		l1Bytes := int64(s.L1Entries) * l1EntryBytes
		if l1Bytes > maxL1Bytes {
			return corrupt("snapshot table", h.SnapshotsOffset, "the L1 table of snapshot %q has %d entries", s.ID, s.L1Entries)
		}
		if l1Bytes == 0 {
			continue
		}
		if err := h.checkTable("snapshot's L1 table", s.L1Offset, l1Bytes, m.fileBytes); err != nil {
			return err
		}
	}
	m.snapshots, m.snapshotsEnd = list, h.SnapshotsOffset+n
	return nil
}

// parseSnapshots reads the entries of a snapshot table, and returns how many
// bytes they take. Memory is bounded by the table's largest size, which r ends
// at.
func parseSnapshots(r io.Reader, h *Header) (list []Snapshot, n int64, err error) {
	be := binary.BigEndian
	var fixed [snapshotFixedBytes]byte
	for range h.SnapshotCount {
		at := h.SnapshotsOffset + n
		if _, err := io.ReadFull(r, fixed[:]); err != nil {
			return nil, 0, snapshotReadError(at, err)
		}
		extra := int64(be.Uint32(fixed[snapshotExtraBytes:]))
		if extra > maxSnapshotExtraBytes {
			return nil, 0, corrupt("snapshot table entry", at, "%d bytes of extra data exceed %d", extra, maxSnapshotExtraBytes)
		}
		idBytes := int64(be.Uint16(fixed[snapshotIDBytes:]))
		nameBytes := int64(be.Uint16(fixed[snapshotNameBytes:]))
		entryBytes := (snapshotFixedBytes + extra + idBytes + nameBytes + 7) &^ 7
		rest := make([]byte, entryBytes-snapshotFixedBytes)
		// The padding of the last entry may be missing from the file.
		unpadded := rest[:extra+idBytes+nameBytes]
		if _, err := io.ReadFull(r, unpadded); err != nil {
			return nil, 0, snapshotReadError(at, err)
		}
		if _, err := io.ReadFull(r, rest[len(unpadded):]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, 0, snapshotReadError(at, err)
		}
		s := Snapshot{
			ID:          string(rest[extra:][:idBytes]),
			Name:        string(rest[extra+idBytes:][:nameBytes]),
			L1Offset:    int64(min(be.Uint64(fixed[snapshotL1Offset:]), math.MaxInt64)),
			L1Entries:   be.Uint32(fixed[snapshotL1Entries:]),
			DiskBytes:   h.SizeBytes,
			Seconds:     be.Uint32(fixed[snapshotSeconds:]),
			Nanoseconds: be.Uint32(fixed[snapshotNanoseconds:]),
		}
		if extra >= snapshotExtraDisk+8 {
			s.DiskBytes = int64(min(be.Uint64(rest[snapshotExtraDisk:]), math.MaxInt64))
		}
		list = append(list, s)
		n += entryBytes
	}
	return list, n, nil
}

func snapshotReadError(at int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return truncated("snapshot table entry", at, "it does not end within the file, or within %d bytes of table", maxSnapshotTableBytes)
	}
	return readFailed("snapshot table entry", at, err)
}
