package qcow2

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

const (
	smallCluster = 512
	smallL2      = craftL2Cluster * smallCluster
	// One L2 table of 512-byte clusters covers 32 KiB.
	smallCoverage = 64 * smallCluster
)

func TestMappingsMergeAcrossL2Tables(t *testing.T) {
	b := craftImage(9, 3*smallCoverage, 0, 0)
	host := uint64(len(b))
	b = append(b, make(craft, 4*smallCluster)...)
	// Clusters 62, 63 and 64, 65 lie side by side in the file.
	for i, guest := range []int{62, 63, 64, 65} {
		b.put64(smallL2+8*guest, host+uint64(i)*smallCluster|entryCopied)
	}
	m := openCraft(t, b)
	want := []Mapping{
		{Off: 0, Len: 62 * smallCluster, Kind: Unallocated},
		{Off: 62 * smallCluster, Len: 4 * smallCluster, Kind: Data, Host: int64(host)},
		{Off: 66 * smallCluster, Len: (192 - 66) * smallCluster, Kind: Unallocated},
	}
	got, err := collectMappings(m, 0, m.Size())
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
}

// craftMixed has entries of every kind, next to each other.
func craftMixed(incompatible uint64) craft {
	bits := uint32(9)
	if incompatible&incompatExtendedL2 != 0 {
		bits = 14
	}
	cluster := 1 << bits
	b := craftImage(bits, uint64(40*cluster+512), 20, incompatible)
	l2 := craftL2Cluster * cluster
	data := func(i int) uint64 { return uint64(len(b)-20*cluster+i*cluster) | entryCopied }
	entryBytes := 8
	if bits == 14 {
		entryBytes = 16
	}
	set := func(i int, entry, subclusters uint64) {
		b.put64(l2+i*entryBytes, entry)
		if entryBytes == 16 {
			b.put64(l2+i*16+8, subclusters)
		}
	}
	all := uint64(1<<32 - 1)
	set(1, data(0), all)
	set(2, data(1), all)
	set(3, data(5), all)
	set(4, data(4), 0x0000ffff_00ff0000) // half zero, some data
	set(5, 0, 0xf0f0f0f0_00000000)
	set(6, data(6), 0x80000000_00000001)
	set(7, data(7), 0)
	if entryBytes == 8 {
		set(8, l2Zero, 0)
		set(9, data(8)|l2Zero, 0)
		set(10, l2Zero, 0)
	}
	set(12, l2Compressed|uint64(len(b)-4*cluster+7), 0)
	set(13, l2Compressed|uint64(len(b)-4*cluster+77), 0)
	set(40, data(9), all)
	return b
}

func TestMappingsOfEveryPartAreThePartsOfTheWhole(t *testing.T) {
	for _, incompatible := range []uint64{0, incompatExtendedL2} {
		m := openCraft(t, craftMixed(incompatible))
		whole, err := collectMappings(m, 0, m.Size())
		if err != nil {
			t.Fatal(err)
		}
		var cuts []int64
		for i, w := range whole {
			cuts = append(cuts, w.Off, w.Off+1, w.Off+w.Len/2, w.Off+w.Len-1)
			if i > 0 && whole[i-1].Off+whole[i-1].Len != w.Off {
				t.Fatalf("a gap before %+v", w)
			}
			if i > 0 && w.Kind == whole[i-1].Kind && w.Kind != Compressed && w.Kind != Data {
				t.Fatalf("%+v is not merged", w)
			}
		}
		cuts = append(cuts, m.Size())
		for _, from := range cuts {
			for _, to := range cuts {
				if to < from {
					continue
				}
				got, err := collectMappings(m, from, to-from)
				if err != nil {
					t.Fatal(err)
				}
				if want := clipMappings(whole, from, to); !slices.Equal(got, want) {
					t.Fatalf("[%d,%d)\n%+v\nwant\n%+v", from, to, got, want)
				}
			}
		}
	}
}

func clipMappings(list []Mapping, from, to int64) (clipped []Mapping) {
	for _, m := range list {
		start, end := max(m.Off, from), min(m.Off+m.Len, to)
		if start >= end {
			continue
		}
		if m.Kind == Data {
			m.Host += start - m.Off
		}
		m.Off, m.Len = start, end-start
		clipped = append(clipped, m)
	}
	return clipped
}

func TestExtendedEntriesMapSubclusters(t *testing.T) {
	m := openCraft(t, craftMixed(incompatExtendedL2))
	const cluster, sub = 16384, 512
	got, err := collectMappings(m, 4*cluster, cluster)
	if err != nil {
		t.Fatal(err)
	}
	host := got[1].Host - 16*sub
	want := []Mapping{
		{Off: 4 * cluster, Len: 16 * sub, Kind: Zero},
		{Off: 4*cluster + 16*sub, Len: 8 * sub, Kind: Data, Host: host + 16*sub},
		{Off: 4*cluster + 24*sub, Len: 8 * sub, Kind: Unallocated},
	}
	if !slices.Equal(got, want) || host%cluster != 0 {
		t.Fatalf("%+v", got)
	}
}

func TestDamagedTablesAreErrorsWithAPlace(t *testing.T) {
	const entry = smallL2 + 8*5 // of guest cluster 5
	fileBytes := uint64(len(craftImage(9, 2*smallCoverage, 2, 0)))
	l1 := craftL1Cluster * smallCluster
	for _, c := range []struct {
		name         string
		breakIt      func(b craft)
		incompatible uint64
		structure    string
		offset       int64
		text         string
	}{
		{"L1 reserved bits", func(b craft) { b.put64(l1, smallL2|1) }, 0, "L1 table", int64(l1), "reserved"},
		{"L1 high reserved bits", func(b craft) { b.put64(l1, smallL2|1<<56) }, 0, "L1 table", int64(l1), "reserved"},
		{"L2 beyond the file", func(b craft) { b.put64(l1, fileBytes) }, 0, "L2 table", int64(fileBytes), "file"},
		{"L2 over the L1 table", func(b craft) { b.put64(l1, uint64(l1)) }, 0, "L2 table", int64(l1), "overlaps the L1"},
		{"L2 over the refcount table", func(b craft) { b.put64(l1, craftRefcountCluster*smallCluster) }, 0, "L2 table", craftRefcountCluster * smallCluster, "overlaps"},
		{"shared L2", func(b craft) { b.put64(l1+8, smallL2) }, 0, "L2 table", smallL2, "share"},
		{"entry reserved bits", func(b craft) { b.put64(entry, fileBytes-512|2) }, 0, "L2 table entry", entry, "reserved"},
		{"data beyond the file", func(b craft) { b.put64(entry, fileBytes) }, 0, "L2 table entry", entry, "beyond the end"},
		{"data far beyond the file", func(b craft) { b.put64(entry, entryOffsetMask) }, 0, "L2 table entry", entry, "beyond the end"},
		{"data everywhere the same", func(b craft) {
			for i := range 64 {
				b.put64(smallL2+8*i, fileBytes-512)
			}
		}, 0, "L2 table", smallL2, "mapped into"},
		{"compressed in the header", func(b craft) { b.put64(entry, l2Compressed|100) }, 0, "L2 table entry", entry, "overlaps the header"},
		{"compressed beyond the file", func(b craft) { b.put64(entry, l2Compressed|fileBytes) }, 0, "L2 table entry", entry, "beyond the end"},
		{"compressed beside a data file", func(b craft) { b.put64(entry, l2Compressed|fileBytes-600) }, incompatDataFile, "L2 table entry", entry, "external data"},
		{"moved in a data file", func(b craft) { b.put64(entry, 6*smallCluster) }, incompatDataFile, "L2 table entry", entry, "belongs at 2560"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := craftImage(9, 2*smallCoverage, 2, c.incompatible)
			c.breakIt(b)
			m, err := OpenImage(&memoryFile{bytes: b}, ImageOptions{})
			if err == nil {
				_, err = collectMappings(m, 0, m.Size())
			}
			checkPlace(t, err, c.structure, c.offset, c.text)
		})
	}
}

func checkPlace(t *testing.T, err error, structure string, offset int64, text string) {
	t.Helper()
	var place *Error
	if !errors.As(err, &place) || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	if place.Structure != structure || place.Offset != offset || !strings.Contains(err.Error(), text) {
		t.Errorf("error %q: not %s at %d with %q", err, structure, offset, text)
	}
}

func TestDamagedSubclustersAreErrors(t *testing.T) {
	const cluster = 16384
	l2 := craftL2Cluster * cluster
	for name, c := range map[string]struct{ entry, bitmap uint64 }{
		"data and zero at once":  {5 * cluster, 1<<32 | 1},
		"data without a cluster": {0, 1},
		"unaligned cluster":      {5*cluster + 512, 1},
		"beyond the file":        {50 * cluster, 1},
	} {
		b := craftImage(14, 4*cluster, 1, incompatExtendedL2)
		b.put64(l2+16, c.entry)
		b.put64(l2+24, c.bitmap)
		_, err := collectMappings(openCraft(t, b), 0, 4*cluster)
		var place *Error
		if !errors.As(err, &place) || place.Offset != int64(l2+16) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A cluster that no subcluster uses may lie anywhere.
	b := craftImage(14, 4*cluster, 1, incompatExtendedL2)
	b.put64(l2+16, 50*cluster)
	b.put64(l2+24, 1<<63)
	if _, err := collectMappings(openCraft(t, b), 0, 4*cluster); err != nil {
		t.Error(err)
	}
}

func TestVersion2HasNoZeroClusters(t *testing.T) {
	b := craftImage(9, smallCoverage, 1, 0)
	for i := headerBytesV2; i < 112; i++ {
		b[i] = 0
	}
	b.put32(headerVersion, 2)
	b.put64(smallL2, l2Zero)
	_, err := collectMappings(openCraft(t, b), 0, smallCoverage)
	checkPlace(t, err, "L2 table entry", smallL2, "version 2")
}

func TestASmallCacheGivesTheSameMappings(t *testing.T) {
	b := craftImage(9, 40*smallCoverage, 80, 0)
	for i := range 80 {
		b.put64(smallL2+8*(i*31), uint64(len(b)-(i+1)*smallCluster))
	}
	want, err := collectMappings(openCraft(t, b), 0, 40*smallCoverage)
	if err != nil {
		t.Fatal(err)
	}
	file := &memoryFile{bytes: b}
	m, err := OpenImage(file, ImageOptions{CacheBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(m.tables.places); n != minCachedTables {
		t.Fatalf("%d tables cached", n)
	}
	for range 2 {
		if got, err := collectMappings(m, 0, m.Size()); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v %v", got, err)
		}
	}
	before := file.reads.Load()
	for off := int64(39 * smallCoverage); off < m.Size(); off += smallCluster {
		if _, err := collectMappings(m, off, smallCluster); err != nil {
			t.Fatal(err)
		}
	}
	if n := file.reads.Load() - before; n != 0 {
		t.Errorf("a cached table is read %d times", n)
	}
}

func TestASparseImageOf16TiBIsMappedWithoutReadingTables(t *testing.T) {
	b := craftHeader(3, 16, 16<<40)
	file := &memoryFile{bytes: append(b, make([]byte, 3<<16+32768*8)...)}
	m, err := OpenImage(file, ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := file.reads.Load()
	list, err := collectMappings(m, 0, m.Size())
	if err != nil || len(list) != 1 || list[0] != (Mapping{Len: 16 << 40}) {
		t.Fatal(list, err)
	}
	if file.reads.Load() != before {
		t.Error("tables were read")
	}
}

func TestMappingsRefuseRangesOutsideTheDisk(t *testing.T) {
	m := openCraft(t, craftImage(9, smallCoverage, 0, 0))
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, smallCoverage + 1}, {smallCoverage, 1}, {math.MaxInt64, math.MaxInt64}} {
		if _, err := collectMappings(m, r[0], r[1]); err == nil {
			t.Errorf("%v is accepted", r)
		}
	}
	if list, err := collectMappings(m, smallCoverage, 0); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}

func TestMappingsEndWhenTheirConsumerStops(t *testing.T) {
	m := openCraft(t, craftMixed(0))
	all, err := collectMappings(m, 0, m.Size())
	if err != nil {
		t.Fatal(err)
	}
	for stop := range all {
		var seen int
		for range m.Mappings(t.Context(), 0, m.Size()) {
			if seen == stop {
				break
			}
			seen++
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range m.Mappings(ctx, 0, m.Size()) {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func TestActiveL1HashChangesWithTheTable(t *testing.T) {
	b := craftImage(9, 2*smallCoverage, 1, 0)
	first := openCraft(t, b).ActiveL1Hash()
	if first != openCraft(t, b).ActiveL1Hash() {
		t.Error("the hash is not stable")
	}
	entry := uint64(craftL2Cluster * smallCluster)
	b.put64(craftL1Cluster*smallCluster, entry)
	if first != openCraft(t, b).ActiveL1Hash() {
		t.Error("the flag that an internal snapshot changes is in the hash")
	}
	b.put64(craftL1Cluster*smallCluster, 0)
	if first == openCraft(t, b).ActiveL1Hash() {
		t.Error("another table has the same hash")
	}
}
