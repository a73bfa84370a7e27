package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/qbackup/qbackup/internal/qcow2"
)

// entry returns the L2 entry of a cluster of the disk; 0 when it has none.
func (d *Disk) entry(cluster int64) (uint64, error) {
	perTable := d.clusterBytes / 8
	slot := cluster / perTable
	table, err := d.table(slot)
	if err != nil || table == nil {
		return 0, err
	}
	entry := table[cluster%perTable]
	if entry&compressed != 0 {
		return 0, fmt.Errorf("cluster %d is compressed, which a guest here cannot change", cluster)
	}
	if entry&offsetMask != 0 && entry&copied == 0 {
		return 0, fmt.Errorf("cluster %d is shared", cluster)
	}
	return entry, nil
}

// table returns an L2 table, or nil when there is none.
func (d *Disk) table(slot int64) ([]uint64, error) {
	if table := d.l2[slot]; table != nil || d.l1[slot]&offsetMask == 0 {
		return table, nil
	}
	table, err := readWords(d.file, int64(d.l1[slot]&offsetMask), d.clusterBytes/8)
	if err != nil {
		return nil, fmt.Errorf("read L2 table: %w", err)
	}
	d.l2[slot] = table
	return table, nil
}

// setEntry changes the L2 entry of a cluster, and makes the table when needed.
func (d *Disk) setEntry(cluster int64, entry uint64) error {
	perTable := d.clusterBytes / 8
	slot := cluster / perTable
	table, err := d.table(slot)
	if err != nil {
		return err
	}
	if table == nil {
		if table, err = d.addTable(slot); err != nil {
			return err
		}
	}
	table[cluster%perTable] = entry
	return writeWord(d.file, int64(d.l1[slot]&offsetMask)+cluster%perTable*8, entry)
}

func (d *Disk) addTable(slot int64) ([]uint64, error) {
	place, _, err := d.refs.allocate(1)
	if err != nil {
		return nil, err
	}
	if _, err := d.file.WriteAt(make([]byte, d.clusterBytes), place); err != nil {
		return nil, err
	}
	d.l1[slot] = uint64(place) | copied
	d.l2[slot] = make([]uint64, d.clusterBytes/8)
	return d.l2[slot], writeWord(d.file, d.header.L1Offset+slot*8, d.l1[slot])
}

func writeWord(w io.WriterAt, off int64, v uint64) error {
	_, err := w.WriteAt(binary.BigEndian.AppendUint64(nil, v), off)
	return err
}

// refcounts holds the 16-bit refcounts of the file; every change is written at
// once.
type refcounts struct {
	file         qcow2.File
	clusterBytes int64
	tableOffset  int64
	table        []uint64
	blocks       map[int64][]byte
	// hint is a cluster below which none is free.
	hint int64
}

func openRefcounts(f qcow2.File, h *qcow2.Header) (*refcounts, error) {
	r := &refcounts{file: f, clusterBytes: h.ClusterBytes(), tableOffset: h.RefcountTableOffset, blocks: map[int64][]byte{}}
	table, err := readWords(f, h.RefcountTableOffset, int64(h.RefcountTableClusters)*h.ClusterBytes()/8)
	if err != nil {
		return nil, fmt.Errorf("read refcount table: %w", err)
	}
	r.table = table
	return r, nil
}

func (r *refcounts) perBlock() int64 { return r.clusterBytes / 2 }

// block returns a refcount block, or nil when there is none.
func (r *refcounts) block(no int64) ([]byte, error) {
	if b := r.blocks[no]; b != nil || r.table[no] == 0 {
		return b, nil
	}
	b := make([]byte, r.clusterBytes)
	if _, err := r.file.ReadAt(b, int64(r.table[no])); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read refcount block: %w", err)
	}
	r.blocks[no] = b
	return b, nil
}

// set changes the refcounts of a run of clusters, which must all be old.
func (r *refcounts) set(first, count int64, old, new uint16) error {
	for done := int64(0); done < count; {
		no, i := (first+done)/r.perBlock(), (first+done)%r.perBlock()
		b, err := r.block(no)
		if err != nil {
			return err
		}
		n := min(count-done, r.perBlock()-i)
		for k := i; k < i+n; k++ {
			if v := binary.BigEndian.Uint16(b[k*2:]); v != old {
				return fmt.Errorf("cluster %d has the refcount %d instead of %d", no*r.perBlock()+k, v, old)
			}
			binary.BigEndian.PutUint16(b[k*2:], new)
		}
		if _, err := r.file.WriteAt(b[i*2:(i+n)*2], int64(r.table[no])+i*2); err != nil {
			return err
		}
		done += n
	}
	return nil
}

// free gives back count clusters at an offset.
func (r *refcounts) free(offset, count int64) error {
	if offset == 0 {
		return nil
	}
	r.hint = min(r.hint, offset/r.clusterBytes)
	return r.set(offset/r.clusterBytes, count, 1, 0)
}

// allocate returns the offset of up to count neighbouring clusters, and how many
// there are.
func (r *refcounts) allocate(count int64) (offset, got int64, err error) {
	for c := r.hint; c < int64(len(r.table))*r.perBlock(); c++ {
		used, err := r.used(c)
		if err != nil {
			return 0, 0, err
		}
		if used {
			continue
		}
		for got = 1; got < count && c+got < int64(len(r.table))*r.perBlock(); got++ {
			// A run ends where a new refcount block would begin.
			if r.table[(c+got)/r.perBlock()] == 0 {
				break
			}
			if used, err := r.used(c + got); err != nil || used {
				break
			}
		}
		r.hint = c + got
		return c * r.clusterBytes, got, r.set(c, got, 0, 1)
	}
	return 0, 0, errors.New("the refcount table is full")
}

// allocateAll returns the offset of exactly count neighbouring clusters.
func (r *refcounts) allocateAll(count int64) (int64, error) {
	run := int64(0)
	for c := max(1, r.hint); c < int64(len(r.table))*r.perBlock(); c++ {
		used, err := r.used(c)
		if err != nil {
			return 0, err
		}
		if run++; used {
			run = 0
		}
		if run == count {
			return (c - count + 1) * r.clusterBytes, r.set(c-count+1, count, 0, 1)
		}
	}
	return 0, errors.New("the refcount table is full")
}

// used tells whether a cluster has a refcount. The first cluster of a range
// without a refcount block becomes that block.
func (r *refcounts) used(cluster int64) (bool, error) {
	no := cluster / r.perBlock()
	if r.table[no] == 0 {
		return true, r.addBlock(no)
	}
	b, err := r.block(no)
	if err != nil {
		return false, err
	}
	return binary.BigEndian.Uint16(b[cluster%r.perBlock()*2:]) != 0, nil
}

func (r *refcounts) addBlock(no int64) error {
	b := make([]byte, r.clusterBytes)
	b[1] = 1 // the block counts itself
	place := no * r.perBlock() * r.clusterBytes
	if _, err := r.file.WriteAt(b, place); err != nil {
		return err
	}
	r.blocks[no], r.table[no] = b, uint64(place)
	return writeWord(r.file, r.tableOffset+no*8, uint64(place))
}
