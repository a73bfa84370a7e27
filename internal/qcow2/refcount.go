package qcow2

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

const refcountTableEntryBytes = 8

// refcountAt returns entry i of a refcount block with entries of width bits.
// Entries narrower than a byte fill it from its least significant bits.
func refcountAt(block []byte, width int, i int64) uint64 {
	switch width {
	case 1, 2, 4:
		perByte := int64(8 / width)
		return uint64(block[i/perByte]>>(i%perByte*int64(width))) & (1<<width - 1)
	case 8:
		return uint64(block[i])
	case 16:
		return uint64(binary.BigEndian.Uint16(block[i*2:]))
	case 32:
		return uint64(binary.BigEndian.Uint32(block[i*4:]))
	default:
		return binary.BigEndian.Uint64(block[i*8:])
	}
}

// setRefcountAt sets entry i of a refcount block; v must fit the width.
func setRefcountAt(block []byte, width int, i int64, v uint64) {
	switch width {
	case 1, 2, 4:
		perByte := int64(8 / width)
		shift := i % perByte * int64(width)
		mask := byte(1<<width-1) << shift
		block[i/perByte] = block[i/perByte]&^mask | byte(v)<<shift
	case 8:
		block[i] = byte(v)
	case 16:
		binary.BigEndian.PutUint16(block[i*2:], uint16(v))
	case 32:
		binary.BigEndian.PutUint32(block[i*4:], uint32(v))
	default:
		binary.BigEndian.PutUint64(block[i*8:], v)
	}
}

// refcounts reads and edits the refcounts of an image. Only the steps 0 to 1
// and 1 to 0 exist: each of them changes one byte, at every width, so that a
// torn write of a block leaves every entry either old or new.
type refcounts struct {
	f        File
	h        *Header
	fileSize int64
	table    []uint64 // offsets of refcount blocks; 0 where there is none

	// The block read last. Callers ask in ascending order.
	block   []byte
	blockNo int64 // -1: none

	pending map[int64]uint64 // cluster number to its new value
}

// openRefcounts reads the refcount table, which is at most 8 MiB.
func openRefcounts(f File, h *Header, fileSize int64) (*refcounts, error) {
	raw := make([]byte, int64(h.RefcountTableClusters)<<h.ClusterBits)
	if err := readPadded(f, raw, h.RefcountTableOffset, fileSize); err != nil {
		return nil, readFailed("refcount table", h.RefcountTableOffset, err)
	}
	r := &refcounts{f: f, h: h, fileSize: fileSize, blockNo: -1, pending: map[int64]uint64{},
		table: make([]uint64, len(raw)/refcountTableEntryBytes), block: make([]byte, h.ClusterBytes())}
	for i := range r.table {
		entry := binary.BigEndian.Uint64(raw[i*refcountTableEntryBytes:])
		if err := r.checkTableEntry(entry, int64(i)); err != nil {
			return nil, err
		}
		r.table[i] = entry
	}
	return r, nil
}

func (r *refcounts) checkTableEntry(entry uint64, i int64) error {
	at := r.h.RefcountTableOffset + i*refcountTableEntryBytes
	switch {
	case entry&uint64(r.h.ClusterBytes()-1) != 0:
		return corrupt("refcount table", at, "entry %#x is not aligned to a cluster", entry)
	case entry >= uint64(r.fileSize):
		if entry != 0 {
			return truncated("refcount table", at, "the refcount block at %d lies beyond the end of the file of %d bytes", entry, r.fileSize)
		}
	}
	return nil
}

// perBlock returns how many clusters one refcount block counts.
func (r *refcounts) perBlock() int64 { return r.h.ClusterBytes() * 8 / int64(r.h.RefcountBits) }

// get returns the refcount of a cluster, with pending changes.
func (r *refcounts) get(cluster int64) (uint64, error) {
	if len(r.pending) > 0 {
		if v, ok := r.pending[cluster]; ok {
			return v, nil
		}
	}
	no := cluster / r.perBlock()
	if no >= int64(len(r.table)) || r.table[no] == 0 {
		return 0, nil
	}
	if err := r.load(no); err != nil {
		return 0, err
	}
	return refcountAt(r.block, r.h.RefcountBits, cluster%r.perBlock()), nil
}

// load makes block no, which must exist, the one in memory.
func (r *refcounts) load(no int64) error {
	if r.blockNo == no {
		return nil
	}
	r.blockNo = -1
	at := int64(r.table[no])
	if err := readPadded(r.f, r.block, at, r.fileSize); err != nil {
		return readFailed("refcount block", at, err)
	}
	r.blockNo = no
	return nil
}

// stage notes a new value for each cluster of a run, to be written by flush.
// Clusters that have another value than old are an error.
func (r *refcounts) stage(first, count int64, old, new uint64) error {
	for c := first; c < first+count; c++ {
		v, err := r.get(c)
		if err != nil {
			return err
		}
		if v != old {
			return corrupt("cluster", c<<r.h.ClusterBits, "its refcount is %d instead of %d", v, old)
		}
		r.pending[c] = new
	}
	return nil
}

// flush writes pending changes, one write for each block, of the bytes from the
// first to the last change.
func (r *refcounts) flush() error {
	clusters := slices.Sorted(maps.Keys(r.pending))
	for len(clusters) > 0 {
		no := clusters[0] / r.perBlock()
		n := 0
		for n < len(clusters) && clusters[n]/r.perBlock() == no {
			n++
		}
		if err := r.flushBlock(no, clusters[:n]); err != nil {
			return err
		}
		clusters = clusters[n:]
	}
	clear(r.pending)
	return nil
}

func (r *refcounts) flushBlock(no int64, clusters []int64) error {
	if no >= int64(len(r.table)) || r.table[no] == 0 {
		return fmt.Errorf("refcount block %d of cluster %d: %w", no, clusters[0], ErrNoSpace)
	}
	if err := r.load(no); err != nil {
		return err
	}
	width := int64(r.h.RefcountBits)
	for _, c := range clusters {
		setRefcountAt(r.block, int(width), c%r.perBlock(), r.pending[c])
	}
	from := clusters[0] % r.perBlock() * width / 8
	to := (clusters[len(clusters)-1]%r.perBlock()*width + width + 7) / 8
	return writeAt(r.f, r.block[from:to], int64(r.table[no])+from, "refcount block")
}
