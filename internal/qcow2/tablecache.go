package qcow2

import "sync/atomic"

// minCachedTables lets two readers work far apart from each other without
// reading each other's table again and again, even with 2 MiB tables.
const minCachedTables = 2

// l2Table is an L2 table as it lies in the file, and the L1 entry it belongs to.
type l2Table struct {
	slot    int64
	offset  int64
	entries []byte
}

// tableCache holds a bounded number of L2 tables without a lock. The table of
// L1 entry i can be held at one place only, i modulo the number of places: a
// scan, which is what a backup does, walks through all places and comes back to
// none, so that an order of use would buy nothing.
type tableCache struct {
	places []atomic.Pointer[l2Table]
}

func newTableCache(budgetBytes, tableBytes int64, l1Entries int) *tableCache {
	n := min(max(budgetBytes/tableBytes, minCachedTables), int64(max(l1Entries, 1)))
	return &tableCache{places: make([]atomic.Pointer[l2Table], n)}
}

func (c *tableCache) place(slot int64) *atomic.Pointer[l2Table] {
	return &c.places[slot%int64(len(c.places))]
}

// table returns the L2 table of L1 entry slot, which must have one. Two
// goroutines that miss the same table both read it.
func (m *Image) table(slot int64) (*l2Table, error) {
	place := m.tables.place(slot)
	if t := place.Load(); t != nil && t.slot == slot {
		return t, nil
	}
	t := &l2Table{slot: slot, offset: int64(m.l1[slot] & entryOffsetMask), entries: make([]byte, m.header.ClusterBytes())}
	if err := readPadded(m.file, t.entries, t.offset, m.fileBytes); err != nil {
		return nil, readFailed("L2 table", t.offset, err)
	}
	place.Store(t)
	return t, nil
}
