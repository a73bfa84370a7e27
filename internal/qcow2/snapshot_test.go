package qcow2

import (
	"bytes"
	"strings"
	"testing"
)

// craftSnapshot is one entry of a snapshot table.
func craftSnapshot(id, name string, l1Offset uint64, l1Entries uint32, extra []byte) craft {
	n := snapshotFixedBytes + len(extra) + len(id) + len(name)
	b := make(craft, (n+7)&^7)
	b.put64(snapshotL1Offset, l1Offset)
	b.put32(snapshotL1Entries, l1Entries)
	b.put32(snapshotIDBytes, uint32(len(id))<<16|uint32(len(name)))
	b.put32(snapshotSeconds, 1234)
	b.put32(snapshotExtraBytes, uint32(len(extra)))
	copy(b[snapshotFixedBytes:], string(extra)+id+name)
	return b
}

// craftSnapshots makes an image with a snapshot table at its end.
func craftSnapshots(count uint32, entries ...craft) craft {
	b := craftImage(9, smallCoverage, 1, 0)
	b.put32(headerSnapshotCount, count)
	b.put64(headerSnapshotsOffset, uint64(len(b)))
	for _, e := range entries {
		b = append(b, e...)
	}
	return b
}

func TestSnapshotTablesAreRead(t *testing.T) {
	extra := make(craft, 24)
	extra.put64(snapshotExtraDisk, 7<<20)
	const l1 = craftL1Cluster * smallCluster
	b := craftSnapshots(3,
		craftSnapshot("1", "one", l1, 1, nil),
		craftSnapshot("22", "", l1, 1, extra),
		craftSnapshot("", "no memory", 0, 0, extra[:16]))
	for _, cut := range []int{0, 5} { // the padding of the last entry may be missing
		m := openCraft(t, b[:len(b)-cut])
		want := []Snapshot{
			{ID: "1", Name: "one", L1Offset: l1, L1Entries: 1, DiskBytes: smallCoverage, Seconds: 1234},
			{ID: "22", L1Offset: l1, L1Entries: 1, DiskBytes: 7 << 20, Seconds: 1234},
			{Name: "no memory", DiskBytes: 7 << 20, Seconds: 1234},
		}
		for i, s := range m.Snapshots() {
			if s != want[i] {
				t.Errorf("snapshot %d: %+v, want %+v", i, s, want[i])
			}
		}
		if off, end := m.SnapshotTable(); len(m.Snapshots()) != 3 || end-off != int64(len(b))-off {
			t.Errorf("%d snapshots in [%d,%d)", len(m.Snapshots()), off, end)
		}
	}
}

func TestDamagedSnapshotTablesAreErrors(t *testing.T) {
	good := craftSnapshot("1", "one", craftL1Cluster*smallCluster, 1, nil)
	const at = 6 * smallCluster
	for _, c := range []struct {
		name      string
		image     craft
		structure string
		offset    int64
		text      string
	}{
		{"missing entry", craftSnapshots(2, good), "snapshot table", at, "do not end within"},
		{"torn name", craftSnapshots(2, good, good)[:at+2*48-6], "snapshot table entry", at + 48, "does not end within"},
		{"much extra data", craftSnapshots(1, craftSnapshot("1", "", 0, 0, make([]byte, 1025))), "snapshot table entry", at, "1025 bytes of extra"},
		{"long L1", craftSnapshots(1, craftSnapshot("1", "", 512, 4<<20+1, nil)), "snapshot table", at, "4194305 entries"},
		{"L1 in the header", craftSnapshots(1, craftSnapshot("1", "", 0, 1, nil)), "snapshot's L1 table", 0, "header"},
		{"L1 beyond the file", craftSnapshots(1, craftSnapshot("1", "", 1<<20, 1, nil)), "snapshot's L1 table", 1 << 20, "file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := OpenImage(&memoryFile{bytes: c.image}, ImageOptions{})
			checkPlace(t, err, c.structure, c.offset, c.text)
		})
	}
}

func FuzzParseSnapshots(f *testing.F) {
	entry := craftSnapshot("1", "one", 1536, 1, make([]byte, 16))
	f.Add([]byte(entry), uint32(1))
	f.Add([]byte(strings.Repeat(string(entry), 3)), uint32(3))
	f.Fuzz(func(t *testing.T, b []byte, count uint32) {
		list, n, err := parseSnapshots(bytes.NewReader(b), &Header{SnapshotCount: count % (maxSnapshots + 1)})
		if err == nil && (len(list) != int(count%(maxSnapshots+1)) || n > int64(len(b))+7) {
			t.Fatalf("%d snapshots in %d of %d bytes", len(list), n, len(b))
		}
	})
}
