package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
)

// maxHostOffset is beyond every offset that an L2 entry can hold.
const maxHostOffset = 1 << 56

// Kind is where the bytes of a mapping come from.
type Kind uint8

const (
	// Unallocated: from the backing file, zeros without one.
	Unallocated Kind = iota
	// Zero: zeros, whatever the backing file says.
	Zero
	// Data: from the data file, which is the image itself when there is no
	// external one, beginning at Host.
	Data
	// Compressed: one cluster, or a part of one, packed at Host.
	Compressed
)

func (k Kind) String() string {
	return [...]string{"unallocated", "zero", "data", "compressed"}[k]
}

// Mapping says where a range of the disk lies.
type Mapping struct {
	Off, Len int64 // of the disk, in bytes
	Kind     Kind
	// Host is a byte offset: of Off itself for Data, and of the packed
	// cluster that Off lies in for Compressed.
	Host int64
	// HostBytes is the most that a packed cluster takes; what it takes is
	// known only by unpacking it.
	HostBytes int64
}

// Mappings streams where the disk's bytes [off, off+n) lie: ascending, without
// gaps, neighbours merged when they are of one kind and, for Data, also lie
// side by side in the file. The first error ends the stream. ctx is looked at
// once per L2 table.
func (m *Image) Mappings(ctx context.Context, off, n int64) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		if off < 0 || n < 0 || off > m.Size()-n {
			yield(Mapping{}, fmt.Errorf("map %d bytes at %d of a disk of %d bytes: out of range", n, off, m.Size()))
			return
		}
		w := walker{image: m, yield: yield, end: off + n, next: off}
		err := w.run(ctx)
		if err == nil {
			w.flush()
		} else if !w.stopped {
			yield(Mapping{}, err)
		}
	}
}

// walker turns table entries into merged mappings.
type walker struct {
	image   *Image
	yield   func(Mapping, error) bool
	next    int64   // first byte not described yet
	end     int64   // where to stop
	pending Mapping // grows until something different follows; Len 0 for none
	data    int64   // bytes of Data so far
	stopped bool    // the consumer wants no more
}

func (w *walker) run(ctx context.Context) error {
	m := w.image
	coverage := m.header.l2Coverage()
	for w.next < w.end && !w.stopped {
		if err := ctx.Err(); err != nil {
			return err
		}
		slot := w.next / coverage
		if m.l1[slot]&entryOffsetMask == 0 {
			for slot++; slot*coverage < w.end && m.l1[slot]&entryOffsetMask == 0; slot++ {
			}
			w.add(Unallocated, min(slot*coverage, w.end), 0)
			continue
		}
		table, err := m.table(slot)
		if err != nil {
			return err
		}
		walk := w.standard
		if m.header.ExtendedL2() {
			walk = w.extended
		}
		if err := walk(table, min((slot+1)*coverage, w.end)); err != nil {
			return err
		}
	}
	return nil
}

// add describes the bytes from next up to end. Host is where the byte at next
// lies.
func (w *walker) add(kind Kind, end, host int64) {
	n := end - w.next
	p := &w.pending
	if p.Len > 0 && p.Kind == kind && kind != Compressed && (kind != Data || p.Host+p.Len == host) {
		p.Len += n
	} else {
		w.flush()
		w.pending = Mapping{Off: w.next, Len: n, Kind: kind, Host: host}
	}
	if kind == Data {
		w.data += n
	}
	w.next = end
}

// flush gives out what has been gathered.
func (w *walker) flush() {
	if w.pending.Len > 0 && !w.stopped {
		w.stopped = !w.yield(w.pending, nil)
	}
	w.pending.Len = 0
}

// entries returns the entries of the clusters from next up to end.
func (w *walker) entries(table *l2Table, end, entryBytes int64) []byte {
	h := w.image.header
	first := w.next >> h.ClusterBits & (h.l2Entries() - 1)
	last := (end - 1) >> h.ClusterBits & (h.l2Entries() - 1)
	return table.entries[first*entryBytes : (last+1)*entryBytes]
}

// standard walks a table of 8-byte entries up to end. Runs of empty entries and
// of neighbouring clusters are taken in one step.
func (w *walker) standard(table *l2Table, end int64) error {
	h := w.image.header
	clusterBytes := h.ClusterBytes()
	entries := w.entries(table, end, l2EntryBytes)
	for len(entries) > 0 && !w.stopped {
		entry := binary.BigEndian.Uint64(entries)
		within := w.next & (clusterBytes - 1)
		run := int64(1)
		after := func() int64 { return min(w.next-within+run*clusterBytes, end) }
		switch {
		case entry == 0:
			run = runLength(entries, 0)
			w.add(Unallocated, after(), 0)
		case entry&l2Compressed != 0:
			if err := w.compressed(table, entry, after()); err != nil {
				return err
			}
		default:
			host, err := w.host(table, entry, entry&l2Zero == 0)
			if err != nil {
				return err
			}
			switch {
			case entry&l2Zero != 0:
				w.add(Zero, after(), 0)
			case host < 0:
				w.add(Unallocated, after(), 0)
			default:
				// What is true of this entry is true of the next ones, up to
				// the end of the file.
				run = min(runLength(entries, uint64(clusterBytes)), (w.image.dataBytes-1-host)/clusterBytes+1)
				w.add(Data, after(), host+within)
			}
		}
		entries = entries[run*l2EntryBytes:]
	}
	return w.checkAmount(table)
}

// runLength counts the entries that each are the one before plus step.
func runLength(entries []byte, step uint64) int64 {
	expected := binary.BigEndian.Uint64(entries)
	var n int64
	for len(entries) >= l2EntryBytes && binary.BigEndian.Uint64(entries) == expected {
		expected += step
		entries = entries[l2EntryBytes:]
		n++
	}
	return n
}

// host checks an entry that is not compressed, and returns the offset of its
// cluster, -1 for none. used says that the cluster is read.
func (w *walker) host(table *l2Table, entry uint64, used bool) (int64, error) {
	h := w.image.header
	if entry&l2ReservedMask != 0 {
		return 0, w.corrupt(table, "reserved bits are set: %#016x", entry)
	}
	if entry&l2Zero != 0 && h.Version < 3 {
		return 0, w.corrupt(table, "a zero cluster in an image of version 2: %#016x", entry)
	}
	host := int64(entry & entryOffsetMask)
	start := w.next &^ (h.ClusterBytes() - 1)
	switch {
	case host == 0 && !(h.ExternalData() && entry&entryCopied != 0):
		return -1, nil
	case host&(h.ClusterBytes()-1) != 0:
		return 0, w.corrupt(table, "the cluster at byte %d is not aligned", host)
	case h.ExternalData() && used && host != start:
		return 0, w.corrupt(table, "in an external data file the cluster at byte %d belongs at %d", host, start)
	case used && host >= w.image.dataBytes:
		return 0, w.truncated(table, host)
	}
	return host, nil
}

// compressed describes one packed cluster. Its descriptor counts the sectors
// after the first one above the bits of its byte offset.
func (w *walker) compressed(table *l2Table, entry uint64, to int64) error {
	h := w.image.header
	offsetBits := 62 - (int(h.ClusterBits) - 8)
	host := int64(entry & (1<<offsetBits - 1))
	sectors := int64(entry&(1<<62-1)>>offsetBits) + 1
	switch {
	case h.ExternalData():
		return w.corrupt(table, "a compressed cluster in an image with an external data file")
	case host < h.ClusterBytes():
		return w.corrupt(table, "the compressed cluster at byte %d overlaps the header", host)
	case host >= w.image.fileBytes:
		return w.truncated(table, host)
	}
	w.add(Compressed, to, host)
	w.pending.HostBytes = sectors*sectorBytes - host&(sectorBytes-1)
	return nil
}

// extended walks a table of 16-byte entries up to end.
func (w *walker) extended(table *l2Table, end int64) error {
	h := w.image.header
	clusterMask := h.ClusterBytes() - 1
	entries := w.entries(table, end, extendedL2EntryBytes)
	for len(entries) > 0 && !w.stopped {
		entry, subclusters := binary.BigEndian.Uint64(entries), binary.BigEndian.Uint64(entries[8:])
		entries = entries[extendedL2EntryBytes:]
		to := min((w.next|clusterMask)+1, end)
		var err error
		switch {
		case entry == 0 && subclusters == 0:
			w.add(Unallocated, to, 0)
		case entry&l2Compressed != 0:
			err = w.compressed(table, entry, to)
		default:
			err = w.subclusters(table, entry, subclusters, to)
		}
		if err != nil {
			return err
		}
	}
	return w.checkAmount(table)
}

// subclusters describes the rest of one cluster, up to byte to. The low half of
// bitmap says which of its 32 subclusters hold data, the high half which read
// as zeros; a subcluster in neither is unallocated.
func (w *walker) subclusters(table *l2Table, entry, bitmap uint64, to int64) error {
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	if alloc&zero != 0 {
		return w.corrupt(table, "subclusters hold data and read as zeros at once: %#016x", bitmap)
	}
	// Bit 0 is the zero flag of standard entries, and unused here.
	host, err := w.host(table, entry&^l2Zero, alloc != 0)
	if err != nil {
		return err
	}
	if host < 0 && alloc != 0 {
		return w.corrupt(table, "subclusters of an unallocated cluster hold data: %#016x", bitmap)
	}
	h := w.image.header
	clusterStart := w.next &^ (h.ClusterBytes() - 1)
	subclusterBits := int(h.ClusterBits) - bits.TrailingZeros(subclustersPerCluster)
	for w.next < to {
		i := (w.next - clusterStart) >> subclusterBits
		kind, same, at := Unallocated, ^(alloc | zero), int64(0)
		if alloc>>i&1 != 0 {
			kind, same, at = Data, alloc, host+w.next-clusterStart
		} else if zero>>i&1 != 0 {
			kind, same = Zero, zero
		}
		// The run of equal subclusters that begins with number i.
		run := int64(bits.TrailingZeros32(^(same >> i)))
		w.add(kind, min(clusterStart+(i+run)<<subclusterBits, to), at)
	}
	return nil
}

// checkAmount refuses tables that use clusters several times over: within one
// state of the disk each cluster is used once, so that all data together cannot
// be more than the file, its last cluster rounded up. It bounds the work that a
// small file can cause.
func (w *walker) checkAmount(table *l2Table) error {
	if limit := w.image.dataBytes; w.data-w.image.header.ClusterBytes() >= limit {
		return corrupt("L2 table", table.offset, "%d bytes are mapped into a file of %d bytes", w.data, limit)
	}
	return nil
}

// corrupt makes an error that names the entry of the byte at next.
func (w *walker) corrupt(table *l2Table, format string, args ...any) error {
	return corrupt("L2 table entry", w.entryOffset(table), format, args...)
}

func (w *walker) truncated(table *l2Table, host int64) error {
	return truncated("L2 table entry", w.entryOffset(table), "its cluster at byte %d lies beyond the end of the file of %d bytes", host, w.image.dataBytes)
}

func (w *walker) entryOffset(table *l2Table) int64 {
	h := w.image.header
	i := (w.next >> h.ClusterBits) & (h.l2Entries() - 1)
	return table.offset + i*(h.ClusterBytes()/h.l2Entries())
}
