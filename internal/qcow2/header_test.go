package qcow2

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// craft is a header as bytes, with helpers that break it field by field.
type craft []byte

// craftHeader makes the first cluster of a version 3 image with one L1 entry
// per 512 MiB, as `qemu-img create` lays it out: refcount table in cluster 1,
// L1 table in cluster 3.
func craftHeader(version, clusterBits uint32, size uint64) craft {
	b := make(craft, 1<<clusterBits)
	b.put32(headerMagic, magic)
	b.put32(headerVersion, version)
	b.put32(headerClusterBits, clusterBits)
	b.put64(headerSize, size)
	entries := (size + (1 << (2*clusterBits - 3)) - 1) >> (2*clusterBits - 3)
	b.put32(headerL1Entries, uint32(entries))
	b.put64(headerL1Offset, 3<<clusterBits)
	b.put64(headerRefcountTableOffset, 1<<clusterBits)
	b.put32(headerRefcountTableClusters, 1)
	if version >= 3 {
		b.put32(headerRefcountOrder, 4)
		b.put32(headerLength, 112)
	}
	return b
}

func (c craft) put32(at int, v uint32) { binary.BigEndian.PutUint32(c[at:], v) }
func (c craft) put64(at int, v uint64) { binary.BigEndian.PutUint64(c[at:], v) }

// extend writes an extension at offset at and returns where the next one goes.
func (c craft) extend(at int, kind uint32, data []byte) int {
	c.put32(at, kind)
	c.put32(at+4, uint32(len(data)))
	copy(c[at+8:], data)
	return at + 8 + (len(data)+7)&^7
}

func (c craft) bitmaps(at int, count, reserved uint32, bytes, offset uint64) int {
	data := make(craft, bitmapsExtensionBytes)
	data.put32(0, count)
	data.put32(4, reserved)
	data.put64(8, bytes)
	data.put64(16, offset)
	return c.extend(at, extensionBitmaps, data)
}

const craftFileBytes = 1 << 20

func TestParseHeaderReadsTheFieldsOfVersion3(t *testing.T) {
	b := craftHeader(3, 16, 10<<30+100)
	b.put64(headerIncompatible, incompatExtendedL2|incompatCompression|incompatDataFile|incompatDirty)
	b.put64(headerCompatible, compatLazyRefcounts|1<<40)
	b.put64(headerAutoclear, autoclearBitmaps|autoclearRawDataFile|1<<50)
	b.put32(headerRefcountOrder, 6)
	b[headerCompressionType] = compressionZstd
	b.put32(headerL1Entries, 100)
	at := b.extend(112, extensionBackingFormat, []byte("raw"))
	at = b.extend(at, extensionDataFile, []byte("data.raw"))
	unknownAt := at
	at = b.extend(at, 0x12345678, []byte("12345"))
	payload := at + 8
	at = b.bitmaps(at, 3, 0, 96, 4<<16)
	end := at
	copy(b[0x800:], "base.img")
	b.put64(headerBackingOffset, 0x800)
	b.put32(headerBackingBytes, 8)

	h, err := ParseHeader(b, craftFileBytes)
	if err != nil {
		t.Fatal(err)
	}
	if h.SizeBytes != 10<<30 || h.StoredSizeBytes != 10<<30+100 {
		t.Errorf("size %d stored %d", h.SizeBytes, h.StoredSizeBytes)
	}
	if h.RefcountBits != 64 || h.ClusterBytes() != 65536 || h.L1Entries != 100 || h.Compression != Zstd {
		t.Errorf("fields: %+v", h)
	}
	if !h.ExternalData() || !h.ExtendedL2() || !h.Dirty() || h.Corrupt() || !h.RawDataFile() || !h.BitmapsValid() {
		t.Errorf("features: %+v", h)
	}
	if h.UnknownAutoclear() != 1<<50 {
		t.Errorf("unknown autoclear bits %#x", h.UnknownAutoclear())
	}
	if h.BackingFile != "base.img" || h.BackingFormat != "raw" || h.DataFile != "data.raw" {
		t.Errorf("names: %q %q %q", h.BackingFile, h.BackingFormat, h.DataFile)
	}
	if want := (BitmapsExtension{3, 96, 4 << 16, int64(payload)}); h.Bitmaps == nil || *h.Bitmaps != want {
		t.Errorf("bitmaps %+v, want %+v", h.Bitmaps, want)
	}
	if h.ExtensionsEnd != int64(end) || h.ExtensionsLimit != 0x800 {
		t.Errorf("extensions end at %d of %d, want %d of %d", h.ExtensionsEnd, h.ExtensionsLimit, end, 0x800)
	}
	i := slices.IndexFunc(h.Extensions, func(e Extension) bool { return e.Type == 0x12345678 })
	if i != 2 || h.Extensions[i].Offset != int64(unknownAt) || string(h.Extensions[i].Data) != "12345" {
		t.Errorf("unknown extension %d: %+v", i, h.Extensions)
	}
	if err := h.CheckTrust(); !errors.Is(err, ErrDirty) {
		t.Errorf("dirty image: %v", err)
	}
}

func TestParseHeaderGivesVersion2ItsDefaults(t *testing.T) {
	b := craftHeader(2, 16, 1<<30)
	// Bytes from 72 on are extensions there, and not feature bits.
	end := b.extend(headerBytesV2, extensionBackingFormat, []byte("qcow2"))
	b.bitmaps(end, 1, 0, 32, 4<<16)
	h, err := ParseHeader(b, craftFileBytes)
	if err != nil {
		t.Fatal(err)
	}
	if h.RefcountBits != 16 || h.HeaderBytes != 72 || h.BackingFormat != "qcow2" || h.Incompatible|h.Compatible|h.Autoclear != 0 {
		t.Errorf("%+v", h)
	}
	if h.Bitmaps != nil {
		t.Error("version 2 cannot have bitmaps")
	}
}

func TestParseHeaderOfAFileThatEndsInTheFirstClusterReadsZeros(t *testing.T) {
	b := craftHeader(3, 16, 0)
	b.put64(headerL1Offset, 0)
	_, err := ParseHeader(b[:112], 112)
	var place *Error
	if !errors.As(err, &place) || place.Structure != "refcount table" || !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	noBits := func(b craft) { b.put64(headerAutoclear, 0) }
	valid := func(b craft) { b.put64(headerAutoclear, autoclearBitmaps) }
	for _, c := range []struct {
		name      string
		breakIt   func(b craft)
		want      error
		structure string
		text      string
	}{
		{"other magic", func(b craft) { b[0] = 'X' }, ErrNotQcow2, "header", "raw:PATH"},
		{"version 1", func(b craft) { b.put32(headerVersion, 1) }, ErrUnsupported, "header", "version 1"},
		{"version 4", func(b craft) { b.put32(headerVersion, 4) }, ErrUnsupported, "header", "version 4"},
		{"small clusters", func(b craft) { b.put32(headerClusterBits, 8) }, ErrCorrupt, "header", "cluster size 2^8"},
		{"large clusters", func(b craft) { b.put32(headerClusterBits, 22) }, ErrCorrupt, "header", "cluster size 2^22"},
		{"absurd clusters", func(b craft) { b.put32(headerClusterBits, 1<<31+16) }, ErrCorrupt, "header", "cluster size"},
		{"short header", func(b craft) { b.put32(headerLength, 103) }, ErrCorrupt, "header", "length 103"},
		{"long header", func(b craft) { b.put32(headerLength, 65537) }, ErrCorrupt, "header", "length 65537"},
		{"wide refcounts", func(b craft) { b.put32(headerRefcountOrder, 7) }, ErrCorrupt, "header", "refcount width"},
		{"size above int64", func(b craft) { b.put64(headerSize, 1<<63) }, ErrCorrupt, "header", "disk size"},
		{"largest size", func(b craft) { b.put64(headerSize, 1<<63-1) }, ErrCorrupt, "header", "too small"},
		{"short L1", func(b craft) { b.put64(headerSize, 512<<20+1); b.put32(headerL1Entries, 1) }, ErrCorrupt, "header", "too small"},
		{"long L1", func(b craft) { b.put32(headerL1Entries, 4<<20+1) }, ErrCorrupt, "header", "exceeds"},
		{"L1 in the header", func(b craft) { b.put64(headerL1Offset, 0) }, ErrCorrupt, "L1 table", "overlaps the header"},
		{"unaligned L1", func(b craft) { b.put64(headerL1Offset, 3<<16+512) }, ErrCorrupt, "L1 table", "aligned"},
		{"L1 beyond the file", func(b craft) { b.put64(headerL1Offset, craftFileBytes) }, ErrCorrupt, "L1 table", "cut"},
		{"L1 above int64", func(b craft) { b.put64(headerL1Offset, 1<<63) }, ErrCorrupt, "header", "out of range"},
		{"L1 over the refcount table", func(b craft) { b.put64(headerL1Offset, 1<<16) }, ErrCorrupt, "refcount table", "overlaps the L1"},
		{"no refcount table", func(b craft) { b.put32(headerRefcountTableClusters, 0) }, ErrCorrupt, "header", "no refcount table"},
		{"long refcount table", func(b craft) { b.put32(headerRefcountTableClusters, 129) }, ErrCorrupt, "header", "exceeds"},
		{"unaligned refcount table", func(b craft) { b.put64(headerRefcountTableOffset, 1<<16+8) }, ErrCorrupt, "refcount table", "aligned"},
		{"refcount table beyond the file", func(b craft) { b.put64(headerRefcountTableOffset, 1<<40) }, ErrCorrupt, "refcount table", "file"},
		{"many snapshots", func(b craft) { b.put32(headerSnapshotCount, 65537) }, ErrCorrupt, "header", "snapshots"},
		{"snapshots in the header", func(b craft) { b.put32(headerSnapshotCount, 1) }, ErrCorrupt, "snapshot table", "header"},
		{"AES", func(b craft) { b.put32(headerCryptMethod, 1) }, ErrEncrypted, "header", "method 1"},
		{"LUKS", func(b craft) { b.extend(112, extensionLUKS, make([]byte, 16)) }, ErrEncrypted, "encryption extension", ""},
		{"unknown compression", func(b craft) { b[headerCompressionType] = 2 }, ErrUnsupported, "header", "compression type 2"},
		{"zstd without its bit", func(b craft) { b[headerCompressionType] = 1 }, ErrCorrupt, "header", "disagrees"},
		{"compression bit without zstd", func(b craft) { b.put64(headerIncompatible, incompatCompression) }, ErrCorrupt, "header", "disagrees"},
		{"raw data file without data file", func(b craft) { b.put64(headerAutoclear, autoclearRawDataFile) }, ErrCorrupt, "header", "no external"},
		{"backing name beyond the cluster", func(b craft) { b.put64(headerBackingOffset, 65537) }, ErrCorrupt, "header", "beyond the first"},
		{"backing name too long", func(b craft) { b.put64(headerBackingOffset, 512); b.put32(headerBackingBytes, 1024) }, ErrCorrupt, "header", "1024 bytes"},
		{"backing name over the cluster's end", func(b craft) { b.put64(headerBackingOffset, 65530); b.put32(headerBackingBytes, 7) }, ErrCorrupt, "header", "7 bytes"},
		{"extension over the end", func(b craft) { b.put32(112, 7); b.put32(116, 65536) }, ErrCorrupt, "header extension", "do not fit"},
		{"long backing format", func(b craft) { b.extend(112, extensionBackingFormat, make([]byte, 16)) }, ErrCorrupt, "backing format extension", "16 bytes"},
		{"bitmaps of odd length", func(b craft) { noBits(b); b.extend(112, extensionBitmaps, make([]byte, 25)) }, ErrCorrupt, "bitmaps extension", "25 bytes"},
		{"bitmaps reserved field", func(b craft) { valid(b); b.bitmaps(112, 1, 1, 32, 4<<16) }, ErrCorrupt, "bitmaps extension", "reserved"},
		{"no bitmaps", func(b craft) { valid(b); b.bitmaps(112, 0, 0, 32, 4<<16) }, ErrCorrupt, "bitmaps extension", "0 bitmaps"},
		{"many bitmaps", func(b craft) { valid(b); b.bitmaps(112, 65536, 0, 32, 4<<16) }, ErrCorrupt, "bitmaps extension", "65536 bitmaps"},
		{"empty bitmap directory", func(b craft) { valid(b); b.bitmaps(112, 1, 0, 0, 4<<16) }, ErrCorrupt, "bitmaps extension", "0 bytes"},
		{"long bitmap directory", func(b craft) { valid(b); b.bitmaps(112, 1, 0, 1<<26, 4<<16) }, ErrCorrupt, "bitmaps extension", "not between"},
		{"unaligned bitmap directory", func(b craft) { valid(b); b.bitmaps(112, 1, 0, 32, 4<<16+8) }, ErrCorrupt, "bitmap directory", "aligned"},
		{"bitmap directory beyond the file", func(b craft) { valid(b); b.bitmaps(112, 1, 0, 32, 1<<20) }, ErrCorrupt, "bitmap directory", "file"},
		{"absurd bitmap directory", func(b craft) { valid(b); b.bitmaps(112, 1, 0, 32, 1<<63) }, ErrCorrupt, "bitmap directory", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := craftHeader(3, 16, 1<<30)
			if _, err := ParseHeader(b, craftFileBytes); err != nil {
				t.Fatalf("before: %v", err)
			}
			c.breakIt(b)
			_, err := ParseHeader(b, craftFileBytes)
			var place *Error
			if !errors.Is(err, c.want) || !errors.As(err, &place) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if place.Structure != c.structure || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %q does not name %q and %q", err, c.structure, c.text)
			}
		})
	}
}

func TestParseHeaderRefusesExtendedL2WithSmallClusters(t *testing.T) {
	for bits := uint32(12); bits <= 15; bits++ {
		b := craftHeader(3, bits, 1<<20)
		b.put32(headerL1Entries, 64)
		b.put64(headerIncompatible, incompatExtendedL2)
		if _, err := ParseHeader(b, craftFileBytes); (err == nil) != (bits >= 14) {
			t.Errorf("clusters of 2^%d: %v", bits, err)
		}
	}
}

func TestAnUnknownFeatureIsNamedFromTheImagesOwnTable(t *testing.T) {
	b := craftHeader(3, 16, 1<<30)
	b.put64(headerIncompatible, 1<<7|1<<9|incompatDirty)
	table := make([]byte, 2*featureNameBytes+10)
	table[0], table[1] = 1, 7 // a compatible bit of the same number
	copy(table[2:], "wrong kind")
	table[featureNameBytes], table[featureNameBytes+1] = 0, 7
	copy(table[featureNameBytes+2:], "time travel")
	b.extend(112, extensionFeatureNames, table)
	_, err := ParseHeader(b, craftFileBytes)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `"time travel" (bit 7), bit 9`) {
		t.Fatal(err)
	}
}

func TestStaleBitmapsExtensionsAreNoErrors(t *testing.T) {
	b := craftHeader(3, 16, 1<<30)
	b.bitmaps(112, 1, 0, 32, 1<<40)
	h, err := ParseHeader(b, craftFileBytes)
	if err != nil || h.Bitmaps != nil || len(h.Extensions) != 1 {
		t.Fatalf("%v %+v", err, h)
	}
	b.bitmaps(112, 1, 0, 32, 4<<16)
	h, err = ParseHeader(b, craftFileBytes)
	if err != nil || h.Bitmaps == nil || h.BitmapsValid() {
		t.Fatalf("%v %+v", err, h)
	}
}

func TestAMarkedCorruptImageIsNotTrusted(t *testing.T) {
	b := craftHeader(3, 16, 1<<30)
	b.put64(headerIncompatible, incompatCorrupt|incompatDirty)
	h, err := ParseHeader(b, craftFileBytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.CheckTrust(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "qemu-img check -r") {
		t.Fatal(err)
	}
}

func TestParseHeaderOfEveryPrefixEndsWithAnErrorOrAHeader(t *testing.T) {
	b := craftHeader(3, 9, 1<<20)
	for n := range len(b) {
		h, err := ParseHeader(b[:n], int64(n))
		if err == nil || h != nil {
			t.Fatalf("a file of %d bytes is accepted", n)
		}
		want := ErrCorrupt
		if n < 8 {
			want = ErrNotQcow2
		}
		if !errors.Is(err, want) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	plain := craftHeader(3, 9, 1<<20)
	f.Add([]byte(plain), int64(1<<20))
	f.Add([]byte(craftHeader(2, 9, 1<<20)), int64(1<<20))
	full := craftHeader(3, 12, 1<<20)
	full.put64(headerAutoclear, autoclearBitmaps)
	at := full.extend(112, extensionBackingFormat, []byte("raw"))
	at = full.extend(at, extensionFeatureNames, make([]byte, 96))
	full.bitmaps(at, 1, 0, 32, 4<<12)
	full.put64(headerBackingOffset, 0x800)
	full.put32(headerBackingBytes, 8)
	f.Add([]byte(full), int64(1<<20))
	f.Fuzz(func(t *testing.T, b []byte, fileSize int64) {
		if len(b) > 1<<16 {
			return
		}
		h, err := ParseHeader(b, fileSize)
		if (h == nil) != (err != nil) {
			t.Fatalf("header %v with error %v", h, err)
		}
		var place *Error
		if err != nil && (!errors.As(err, &place) || err.Error() == "") {
			t.Fatalf("error without a place: %v", err)
		}
		if h == nil {
			return
		}
		if h.L1Offset+int64(h.L1Entries)*8 > fileSize || h.SizeBytes > h.StoredSizeBytes || h.l2Coverage()*int64(h.L1Entries) < 0 {
			t.Fatalf("accepted %+v in a file of %d bytes", h, fileSize)
		}
	})
}
