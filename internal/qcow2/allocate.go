package qcow2

import (
	"encoding/binary"
	"fmt"
)

// findFree returns the first of count neighbouring clusters that nobody uses,
// without a change to the file. It looks near the end of the file first, where
// a free place is likely, then everywhere.
func (r *refcounts) findFree(count int64) (int64, bool, error) {
	end := (r.fileSize + r.h.ClusterBytes() - 1) >> r.h.ClusterBits
	near := min(end/r.perBlock(), int64(len(r.table))) * r.perBlock()
	first, ok, err := r.findFreeFrom(max(near, 1), count)
	if err != nil || ok || near == 0 {
		return first, ok, err
	}
	return r.findFreeFrom(1, count)
}

// findFreeFrom is findFree from one cluster on. Clusters that no refcount block
// counts are not free: see addBlock.
func (r *refcounts) findFreeFrom(from, count int64) (int64, bool, error) {
	run := int64(0)
	for c := from; c < int64(len(r.table))*r.perBlock(); c++ {
		if r.table[c/r.perBlock()] == 0 {
			run = 0
			c = (c/r.perBlock()+1)*r.perBlock() - 1
			continue
		}
		v, err := r.get(c)
		if err != nil {
			return 0, false, err
		}
		if run++; v != 0 {
			run = 0
		}
		if run == count {
			return c - count + 1, true, nil
		}
	}
	return 0, false, nil
}

// allocate finds count neighbouring free clusters and stages their refcounts.
func (r *refcounts) allocate(count int64) (int64, error) {
	first, ok, err := r.findFree(count)
	if err == nil && !ok {
		if err = r.addBlock(count); err == nil {
			first, ok, err = r.findFree(count)
		}
	}
	if err == nil && !ok {
		err = r.noSpace(count)
	}
	if err != nil {
		return 0, err
	}
	return first, r.stage(first, count, 0, 1)
}

func (r *refcounts) noSpace(count int64) error {
	return &Error{Structure: "refcount table", Offset: r.h.RefcountTableOffset,
		Err:  fmt.Errorf("no %d neighbouring free clusters are counted by a refcount block: %w", count, ErrNoSpace),
		Hint: "let QEMU write to the disk once more, or add any bitmap with `qemu-img bitmap --add`: that makes room"}
}

// addBlock adds a refcount block for clusters beyond the end of the file, so
// that count neighbours are free after it.
//
// The block counts itself, as the first cluster of its range. It is written
// whole and made durable before the table refers to it. That reference changes
// from zero to an offset, and a torn write of it would refer to some other
// place in the file; so the block is only put where all bytes of its offset but
// one are zero. The same holds below 16 MiB for all ranges of the smallest
// clusters, and below 4 GiB for all ranges of the default ones; elsewhere it
// depends on the place. A larger refcount table is never made: it needs a
// change to two fields of the header that no order of writes makes safe.
func (r *refcounts) addBlock(count int64) error {
	end := (r.fileSize + r.h.ClusterBytes() - 1) >> r.h.ClusterBits
	no := (end + r.perBlock() - 1) / r.perBlock()
	for no < int64(len(r.table)) && r.table[no] != 0 {
		no++
	}
	cluster := no * r.perBlock()
	offset := uint64(cluster) << r.h.ClusterBits
	if no >= int64(len(r.table)) || nonZeroBytes(offset) != 1 || count > r.perBlock()-1 {
		return r.noSpace(count)
	}
	block := make([]byte, r.h.ClusterBytes())
	setRefcountAt(block, r.h.RefcountBits, 0, 1)
	if err := writeAt(r.f, block, int64(offset), "refcount block"); err != nil {
		return err
	}
	if err := syncFile(r.f); err != nil {
		return err
	}
	var entry [refcountTableEntryBytes]byte
	binary.BigEndian.PutUint64(entry[:], offset)
	if err := writeChanged(r.f, make([]byte, len(entry)), entry[:], r.h.RefcountTableOffset+no*refcountTableEntryBytes, "refcount table"); err != nil {
		return err
	}
	if err := syncFile(r.f); err != nil {
		return err
	}
	r.table[no] = offset
	r.fileSize = max(r.fileSize, int64(offset)+r.h.ClusterBytes())
	return nil
}

// nonZeroBytes counts the bytes of v that are not zero.
func nonZeroBytes(v uint64) int {
	n := 0
	for ; v != 0; v >>= 8 {
		if v&0xff != 0 {
			n++
		}
	}
	return n
}
