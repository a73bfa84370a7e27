package qcow2

import "fmt"

// targets are the clusters that an edit is about to write, to empty, or to
// free. Before the first write, everything that the image says of itself is
// walked: a target that has an owner must be found exactly once, a target that
// is free must not be found at all. That is QEMU's check before it writes
// metadata (block/qcow2-refcount.c, qcow2_check_metadata_overlap), made stronger
// by the bitmaps' own clusters.
//
// Clusters of guest data are not walked, as in QEMU: that would mean to read all
// L2 tables. A bitmap's cluster that is guest data as well has a refcount that
// is not 1, and is refused for that.
type targets struct {
	state *state
	found map[int64]string // cluster to the structure it was found in; "" not yet
	free  map[int64]bool
}

func (s *state) newTargets() *targets {
	return &targets{state: s, found: map[int64]string{}, free: map[int64]bool{}}
}

// owned adds the clusters of n bytes at off that belong to a structure. Their
// refcounts must be exactly 1.
func (t *targets) owned(off, n int64) error {
	first, count := t.state.clusterRange(off, n)
	for c := first; c < first+count; c++ {
		v, err := t.state.refs.get(c)
		if err != nil {
			return err
		}
		if v != 1 {
			return corrupt("cluster", c<<t.state.header.ClusterBits, "it belongs to a bitmap, and its refcount is %d instead of 1", v)
		}
		t.found[c] = ""
	}
	return nil
}

// unused adds clusters that are free, and going to be used.
func (t *targets) unused(first, count int64) {
	for c := first; c < first+count; c++ {
		t.found[c] = ""
		t.free[c] = true
	}
}

// counted adds the block with the refcount of a cluster: it is written.
func (t *targets) counted(cluster int64) {
	if no := cluster / t.state.refs.perBlock(); no < int64(len(t.state.refs.table)) {
		t.found[int64(t.state.refs.table[no])>>t.state.header.ClusterBits] = ""
	}
}

// visit reports a structure that lies in n bytes at off.
func (t *targets) visit(structure string, off, n int64) error {
	first, count := t.state.clusterRange(off, n)
	// A hostile image can name large structures many times over.
	if count > int64(len(t.found)) {
		for c := range t.found {
			if c >= first && c < first+count {
				if err := t.claim(structure, off, c); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for c := first; c < first+count; c++ {
		if err := t.claim(structure, off, c); err != nil {
			return err
		}
	}
	return nil
}

// claim notes that a structure uses a cluster.
func (t *targets) claim(structure string, off, cluster int64) error {
	before, ok := t.found[cluster]
	switch {
	case !ok:
	case t.free[cluster]:
		return corrupt(structure, off, "its cluster at %d has the refcount 0", cluster<<t.state.header.ClusterBits)
	case before != "":
		return corrupt(structure, off, "its cluster at %d is also used as %s", cluster<<t.state.header.ClusterBits, before)
	default:
		t.found[cluster] = structure
	}
	return nil
}

// check walks the image.
func (t *targets) check() error {
	for _, walk := range []func() error{t.walkTables, t.walkRefcounts, t.walkSnapshots, t.walkBitmaps} {
		if err := walk(); err != nil {
			return err
		}
	}
	for c, structure := range t.found {
		if structure == "" && !t.free[c] {
			return fmt.Errorf("bug: cluster %d is to be changed, and belongs to nothing", c)
		}
	}
	return nil
}

func (t *targets) walkTables() error {
	h := t.state.header
	if err := t.visit("header", 0, h.ClusterBytes()); err != nil {
		return err
	}
	if err := t.visit("L1 table", h.L1Offset, int64(h.L1Entries)*l1EntryBytes); err != nil {
		return err
	}
	for _, e := range t.state.image.l1 {
		if e&entryOffsetMask == 0 {
			continue
		}
		if err := t.visit("L2 table", int64(e&entryOffsetMask), h.ClusterBytes()); err != nil {
			return err
		}
	}
	return nil
}

func (t *targets) walkRefcounts() error {
	h := t.state.header
	if err := t.visit("refcount table", h.RefcountTableOffset, int64(h.RefcountTableClusters)<<h.ClusterBits); err != nil {
		return err
	}
	for _, block := range t.state.refs.table {
		if block == 0 {
			continue
		}
		if err := t.visit("refcount block", int64(block), h.ClusterBytes()); err != nil {
			return err
		}
	}
	return nil
}

func (t *targets) walkSnapshots() error {
	if offset, end := t.state.image.SnapshotTable(); end > offset {
		if err := t.visit("snapshot table", offset, end-offset); err != nil {
			return err
		}
	}
	for _, snapshot := range t.state.image.Snapshots() {
		if err := t.visit("snapshot's L1 table", snapshot.L1Offset, int64(snapshot.L1Entries)*l1EntryBytes); err != nil {
			return err
		}
	}
	return nil
}

// maxWalkedTableBytes bounds what is read of all bitmap tables together: 4096
// of the largest tables with the default cluster size.
const maxWalkedTableBytes = 256 << 20

// walkBitmaps reads all tables, since QEMU reads them when it opens the image.
// The table of an in-use bitmap may be damaged; QEMU does not read it then, and
// what it refers to cannot be known.
func (t *targets) walkBitmaps() error {
	s := t.state
	if len(s.bitmaps) == 0 {
		return nil
	}
	if err := t.visit("bitmap directory", s.header.Bitmaps.DirectoryOffset, s.header.Bitmaps.DirectoryBytes); err != nil {
		return err
	}
	walked := int64(0)
	for _, b := range s.bitmaps {
		n := int64(b.TableEntries) * bitmapTableEntryBytes
		if walked += n; walked > maxWalkedTableBytes {
			return unsupported("bitmap directory", s.header.Bitmaps.DirectoryOffset, "remove some bitmaps with `qemu-img bitmap --remove`",
				"bitmap tables of more than %d bytes", maxWalkedTableBytes)
		}
		table, err := ReadBitmapTable(s.file, s.header, b, s.fileBytes)
		if err != nil && !b.InUse {
			return err
		}
		if err := t.visit("bitmap table", b.TableOffset, n); err != nil {
			return err
		}
		for _, entry := range table {
			if entry <= BitmapAllDirty {
				continue
			}
			if err := t.visit("bitmap data", int64(entry), s.header.ClusterBytes()); err != nil {
				return err
			}
		}
	}
	return nil
}
