package qcow2

import (
	"encoding/binary"
	"fmt"
)

// checker counts references to clusters, and compares them with the refcounts:
// the cheap half of the proof that an image is consistent, where running
// `qemu-img check` for each state would take too long. It shares no code with
// the editor beyond the parsers, and is itself compared with `qemu-img check`.
type checker struct {
	b    []byte
	h    *Header
	refs []uint64 // by cluster; references beyond the end are not counted
}

// checkImage returns how many clusters have a refcount above (leaks) and below
// (errors) the number of references.
func checkImage(b []byte) (leaks, errors int, err error) {
	h, err := ParseHeader(b, int64(len(b)))
	if err != nil {
		return 0, 0, err
	}
	c := &checker{b: b, h: h, refs: make([]uint64, int64(len(b))>>h.ClusterBits+3)}
	c.use(0, h.ClusterBytes())
	if err := c.tables(h.L1Offset, int64(h.L1Entries)); err != nil {
		return 0, 0, err
	}
	if err := c.snapshots(); err != nil {
		return 0, 0, err
	}
	if h.BitmapsValid() {
		if err := c.bitmaps(); err != nil {
			return 0, 0, err
		}
	}
	c.use(h.RefcountTableOffset, int64(h.RefcountTableClusters)*h.ClusterBytes())
	blocks, err := c.blocks()
	if err != nil {
		return 0, 0, err
	}
	perBlock := h.ClusterBytes() * 8 / int64(h.RefcountBits)
	clusters := (int64(len(b)) + h.ClusterBytes() - 1) / h.ClusterBytes()
	for i := range int64(len(c.refs)) {
		want, got := c.refs[i], uint64(0)
		if no := i / perBlock; no < int64(len(blocks)) && blocks[no] != 0 {
			got = refcountAt(c.slice(blocks[no], h.ClusterBytes()), h.RefcountBits, i%perBlock)
		}
		switch {
		case got < want:
			errors++
		case got > want && i < clusters:
			leaks++
		}
	}
	return leaks, errors, nil
}

// use counts one reference to each cluster of a range.
func (c *checker) use(off, n int64) {
	for k := off / c.h.ClusterBytes(); n > 0 && k <= (off+n-1)/c.h.ClusterBytes(); k++ {
		if k < int64(len(c.refs)) {
			c.refs[k]++
		}
	}
}

func (c *checker) word(off int64) uint64 { return binary.BigEndian.Uint64(c.slice(off, 8)) }

// slice returns bytes of the image; beyond the end they are zero.
func (c *checker) slice(off, n int64) []byte {
	if off+n <= int64(len(c.b)) {
		return c.b[off : off+n]
	}
	padded := make([]byte, n)
	copy(padded, c.b[min(off, int64(len(c.b))):])
	return padded
}

// inside refuses what does not begin in the file, as a torn pointer may not.
func (c *checker) inside(off, n int64) error {
	if off < 0 || off%8 != 0 || off > int64(len(c.b)) || n > 64<<20 {
		return fmt.Errorf("%d bytes at %d are outside", n, off)
	}
	return nil
}

// tables counts an L1 table and all it leads to.
func (c *checker) tables(l1, entries int64) error {
	if err := c.inside(l1, entries*8); err != nil {
		return err
	}
	c.use(l1, entries*8)
	step := int64(8)
	if c.h.ExtendedL2() {
		step = 16
	}
	for i := range entries {
		l2 := int64(c.word(l1+i*8) & entryOffsetMask)
		if l2 == 0 {
			continue
		}
		if err := c.inside(l2, c.h.ClusterBytes()); err != nil {
			return err
		}
		c.use(l2, c.h.ClusterBytes())
		for at := l2; at < l2+c.h.ClusterBytes(); at += step {
			c.data(c.word(at))
		}
	}
	return nil
}

// data counts what an L2 entry refers to.
func (c *checker) data(e uint64) {
	if c.h.ExternalData() {
		return
	}
	if e&l2Compressed != 0 {
		x := 62 - (int(c.h.ClusterBits) - 8)
		host := int64(e & (1<<x - 1))
		sectors := int64(e&(1<<62-1)>>x) + 1
		c.use(host&^511, sectors*512)
		return
	}
	if host := int64(e & entryOffsetMask); host != 0 {
		c.use(host, c.h.ClusterBytes())
	}
}

func (c *checker) snapshots() error {
	at := c.h.SnapshotsOffset
	for range c.h.SnapshotCount {
		if err := c.inside(at, 40); err != nil {
			return err
		}
		be := binary.BigEndian
		if err := c.tables(int64(c.word(at)), int64(be.Uint32(c.slice(at+8, 4)))); err != nil {
			return err
		}
		entry := c.slice(at, 40)
		at += 40 + int64(be.Uint32(entry[36:])) + int64(be.Uint16(entry[12:])) + int64(be.Uint16(entry[14:]))
		at = (at + 7) &^ 7
	}
	c.use(c.h.SnapshotsOffset, at-c.h.SnapshotsOffset)
	return nil
}

func (c *checker) bitmaps() error {
	x := c.h.Bitmaps
	if x == nil {
		return nil
	}
	list, err := ParseBitmapDirectory(c.slice(x.DirectoryOffset, x.DirectoryBytes), c.h)
	if err != nil {
		return err
	}
	c.use(x.DirectoryOffset, x.DirectoryBytes)
	for _, b := range list {
		n := int64(b.TableEntries) * 8
		if err := c.inside(b.TableOffset, n); err != nil {
			return err
		}
		c.use(b.TableOffset, n)
		table, err := ParseBitmapTable(c.slice(b.TableOffset, n), c.h, b, int64(len(c.b)))
		if err != nil {
			return err
		}
		for _, e := range table {
			if e > 1 {
				c.use(int64(e), c.h.ClusterBytes())
			}
		}
	}
	return nil
}

// blocks counts the refcount blocks and returns where they are.
func (c *checker) blocks() ([]int64, error) {
	n := int64(c.h.RefcountTableClusters) * c.h.ClusterBytes()
	if err := c.inside(c.h.RefcountTableOffset, n); err != nil {
		return nil, err
	}
	blocks := make([]int64, n/8)
	used := 0
	for i := range blocks {
		blocks[i] = int64(c.word(c.h.RefcountTableOffset + int64(i)*8))
		if blocks[i] == 0 {
			continue
		}
		used = i + 1
		if err := c.inside(blocks[i], c.h.ClusterBytes()); err != nil || blocks[i]%c.h.ClusterBytes() != 0 {
			return nil, fmt.Errorf("refcount block at %d: %v", blocks[i], err)
		}
		c.use(blocks[i], c.h.ClusterBytes())
	}
	return blocks[:used], nil
}
