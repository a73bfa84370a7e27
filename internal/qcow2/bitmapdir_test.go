package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// openFile opens an image for reading and writing until the test ends.
func openFile(t testing.TB, path string) File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return NewOSFile(f)
}

// createImage has QEMU make an image; options are those of -o, without "".
func createImage(t testing.TB, size string, options ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	args := []string{"create", "-q", "-f", "qcow2"}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	testtool.Run(t, "qemu-img", append(args, path, size)...)
	return path
}

// qemuBitmap is a bitmap as `qemu-img info` shows it.
type qemuBitmap struct {
	Name        string   `json:"name"`
	Granularity int64    `json:"granularity"`
	Flags       []string `json:"flags"`
}

// qemuBitmaps asks QEMU for the bitmaps of an image.
func qemuBitmaps(t testing.TB, path string) []qemuBitmap {
	t.Helper()
	out := testtool.Run(t, "qemu-img", "info", "--output=json", path)
	var info struct {
		Specific struct {
			Data struct {
				Bitmaps []qemuBitmap `json:"bitmaps"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return info.Specific.Data.Bitmaps
}

// readAll reads the directory and the tables that QEMU reads when it opens an
// image: those of bitmaps that are not in use.
func readAll(f File) ([]Bitmap, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	list, _, err := readBitmapDirectory(f, h, size)
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		if b.InUse {
			continue
		}
		if _, err := ReadBitmapTable(f, h, b, size); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func TestTheDirectoryReadsAsQEMUShowsIt(t *testing.T) {
	path := createImage(t, "100M")
	testtool.Run(t, "qemu-img", "bitmap", "--add", path, "first")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "512", "--disable", path, "zwölf ∀")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "2G", path, strings.Repeat("n", 1023))
	list, err := readAll(openFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range qemuBitmaps(t, path) {
		got := list[i]
		if got.Name != want.Name || got.GranularityBytes != want.Granularity ||
			got.Enabled != (strings.Join(want.Flags, " ") == "auto") || got.InUse || got.Type != 1 || got.ExtraBytes != 0 {
			t.Errorf("bitmap %d is %+v, QEMU says %+v", i, got, want)
		}
	}
	if len(list) != 3 || list[1].TableEntries != 1 {
		t.Errorf("bitmaps: %+v", list)
	}
}

func TestAnAppendedEntryParsesToItself(t *testing.T) {
	h := &Header{ClusterBits: 16, SizeBytes: 40 << 30}
	for _, want := range []Bitmap{
		{Name: "a", GranularityBytes: 512, Enabled: true, Flags: bitmapAuto, TableOffset: 1 << 40, TableEntries: 160},
		{Name: strings.Repeat("x", 1023), GranularityBytes: 65536, TableOffset: 65536, TableEntries: 2},
		{Name: "12345678", GranularityBytes: 1 << 31, InUse: true, Flags: bitmapInUse, TableOffset: 65536, TableEntries: 77},
	} {
		want.Type = bitmapTypeDirty
		b := appendBitmapEntry(nil, want)
		got, err := parseBitmapEntry(b, h, 0)
		want.entryBytes, want.nameBytes = int64(len(b)), len(want.Name)
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func TestTableLengthsAreRoundedToWordsFirst(t *testing.T) {
	for _, c := range []struct{ size, granularity, cluster, want int64 }{
		{0, 512, 512, 0},
		{512, 512, 512, 1},
		{512 * 512 * 8, 512, 512, 1},
		{512*512*8 + 512, 512, 512, 2},
		{1 << 40, 65536, 65536, 32},
		{1<<40 + 512, 65536, 65536, 33},
		{16 << 40, 65536, 65536, 512},
		{1<<63 - 512, 1 << 31, 2 << 20, 256},
	} {
		if got := bitmapTableEntries(c.size, c.granularity, c.cluster); got != c.want {
			t.Errorf("disk %d, granularity %d, cluster %d: %d entries, want %d", c.size, c.granularity, c.cluster, got, c.want)
		}
	}
}

// damage is one change to a good image with two bitmaps.
type damage struct {
	name string
	// edit changes the image b; x is the payload of the extension, d the
	// directory, e the second entry, v the table of the first bitmap.
	edit func(b []byte, x, d, e, v int64)
	// stricter says that QEMU opens this image, and we refuse it.
	stricter bool
	// fine says that both open it.
	fine bool
}

var damages = []damage{
	{name: "nothing", fine: true, edit: func(b []byte, x, d, e, v int64) {}},
	{name: "count zero", edit: func(b []byte, x, d, e, v int64) { b[x+3] = 0 }},
	{name: "count too small", edit: func(b []byte, x, d, e, v int64) { b[x+3] = 1 }},
	{name: "count too big", edit: func(b []byte, x, d, e, v int64) { b[x+3] = 3 }},
	{name: "count huge", edit: func(b []byte, x, d, e, v int64) { b[x] = 0xff }},
	{name: "reserved", edit: func(b []byte, x, d, e, v int64) { b[x+7] = 1 }},
	{name: "directory size too small", edit: func(b []byte, x, d, e, v int64) { b[x+15] -= 8 }},
	{name: "directory size too big", edit: func(b []byte, x, d, e, v int64) { b[x+15] += 8 }},
	{name: "directory size huge", edit: func(b []byte, x, d, e, v int64) { b[x+8] = 0x7f }},
	{name: "directory size zero", edit: func(b []byte, x, d, e, v int64) { b[x+14], b[x+15] = 0, 0 }},
	{name: "directory unaligned", edit: func(b []byte, x, d, e, v int64) { b[x+22] = 2 }},
	{name: "directory beyond the end", edit: func(b []byte, x, d, e, v int64) { b[x+19] = 1 }},
	{name: "table offset zero", edit: func(b []byte, x, d, e, v int64) { clear(b[d : d+8]) }},
	{name: "table offset zero in use", edit: func(b []byte, x, d, e, v int64) { clear(b[d : d+8]); b[d+15] |= 1 }},
	{name: "table size zero", edit: func(b []byte, x, d, e, v int64) { clear(b[d+8 : d+12]) }},
	{name: "table one too long", edit: func(b []byte, x, d, e, v int64) { b[d+11]++ }},
	{name: "table one too long in use", fine: true, edit: func(b []byte, x, d, e, v int64) { b[d+11]++; b[d+15] |= 1 }},
	{name: "table too long for any disk", edit: func(b []byte, x, d, e, v int64) { b[d+9] = 4; b[d+15] |= 1 }},
	{name: "table unaligned", edit: func(b []byte, x, d, e, v int64) { b[d+6] = 2 }},
	{name: "flag 2", edit: func(b []byte, x, d, e, v int64) { b[d+15] |= 4 }},
	{name: "flag 31", edit: func(b []byte, x, d, e, v int64) { b[d+12] |= 0x80 }},
	{name: "in use", fine: true, edit: func(b []byte, x, d, e, v int64) { b[d+15] |= 1 }},
	{name: "not auto", fine: true, edit: func(b []byte, x, d, e, v int64) { b[d+15] = 0 }},
	{name: "type 0", edit: func(b []byte, x, d, e, v int64) { b[d+16] = 0 }},
	{name: "type 2", edit: func(b []byte, x, d, e, v int64) { b[d+16] = 2 }},
	{name: "granularity 8", edit: func(b []byte, x, d, e, v int64) { b[d+17] = 8 }},
	{name: "granularity 32", edit: func(b []byte, x, d, e, v int64) { b[d+17] = 32 }},
	{name: "granularity 9 needs a longer table", edit: func(b []byte, x, d, e, v int64) { b[d+17] = 9 }},
	{name: "granularity 31", fine: true, edit: func(b []byte, x, d, e, v int64) { b[d+17] = 31 }},
	{name: "name size 0", edit: func(b []byte, x, d, e, v int64) { b[d+19] = 0 }},
	{name: "name size 1", fine: true, edit: func(b []byte, x, d, e, v int64) { b[d+19] = 1 }},
	{name: "name size 1024", edit: func(b []byte, x, d, e, v int64) { b[d+18] = 4 }},
	{name: "name of a bitmap before", edit: func(b []byte, x, d, e, v int64) { b[e+24] = 'a' }},
	{name: "name cut by a zero", fine: true, edit: func(b []byte, x, d, e, v int64) { b[d+25] = 0 }},
	{name: "names equal up to a zero", edit: func(b []byte, x, d, e, v int64) { b[d+25], b[e+24], b[e+25] = 0, 'a', 0 }},
	{name: "extra data", edit: func(b []byte, x, d, e, v int64) { b[d+23] = 1 }},
	{name: "extra data of 4 GiB", edit: func(b []byte, x, d, e, v int64) { b[d+20] = 0xff }},
	{name: "table entry bit 1", edit: func(b []byte, x, d, e, v int64) { b[v+7] = 2 }},
	{name: "table entry bit 63", edit: func(b []byte, x, d, e, v int64) { b[v] = 0x80 }},
	{name: "table entry offset and ones", edit: func(b []byte, x, d, e, v int64) { b[v+5], b[v+7] = 1, 1 }},
	{name: "table entry misaligned", edit: func(b []byte, x, d, e, v int64) { b[v+6] = 2 }},
	{name: "table entry ones", fine: true, edit: func(b []byte, x, d, e, v int64) { b[v+7] = 1 }},
	{name: "table entry offset", fine: true, edit: func(b []byte, x, d, e, v int64) { b[v+5] = 1 }},
	{name: "table entry beyond the end", stricter: true, edit: func(b []byte, x, d, e, v int64) { b[v+3] = 1 }},
	{name: "table beyond the end", stricter: true, edit: func(b []byte, x, d, e, v int64) { b[d+3] = 1 }},
	{name: "table entry bit 1 in use", fine: true, edit: func(b []byte, x, d, e, v int64) { b[v+7] = 2; b[d+15] |= 1 }},
}

func TestEachFaultIsRefusedAsQEMURefusesIt(t *testing.T) {
	path := createImage(t, "1G", "cluster_size=4096")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "65536", path, "alpha")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "65536", path, "blpha")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good = append(good, make([]byte, 1<<17)...)
	h, err := ParseHeader(good, int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	dir := h.Bitmaps.DirectoryOffset
	first := int64(binary.BigEndian.Uint64(good[dir:]))
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			b := append([]byte(nil), good...)
			d.edit(b, h.Bitmaps.PayloadOffset, dir, dir+32, first)
			bad := filepath.Join(t.TempDir(), "bad.qcow2")
			if err := os.WriteFile(bad, b, 0o644); err != nil {
				t.Fatal(err)
			}
			out, code := testtool.Try(t, "qemu-img", "info", bad)
			_, err := readAll(openFile(t, bad))
			if (code == 0) != (d.fine || d.stricter) {
				t.Errorf("QEMU: exit %d\n%s", code, out)
			}
			if (err == nil) != d.fine {
				t.Errorf("we say %v", err)
			}
			var place *Error
			if err != nil && (!errors.As(err, &place) || place.Structure == "" || place.Offset < 0) {
				t.Errorf("error %q (%T) names no place", err, err)
			}
		})
	}
}

func TestAnEntryNeedsTheBytesItStandsFor(t *testing.T) {
	// 10 clusters of 4096 bytes; the disk has 4096 + 8 bytes of bits.
	h := &Header{ClusterBits: 12, SizeBytes: (4096*8 + 1) * 512}
	b := Bitmap{GranularityBytes: 512, TableOffset: 4096, TableEntries: 2}
	table := func(a, b uint64) []byte {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a), b)
	}
	for _, c := range []struct {
		a, b  uint64
		size  int64
		works bool
	}{
		{0, 0, 4096, true},
		{1, 1, 4096, true},
		{8192, 12288, 12288 + 8, true}, // the last cluster needs one word only
		{8192, 12288, 12288 + 7, false},
		{12288, 8192, 12288 + 8, false},
		{12288, 8192, 16384, true},
		{8192, 1 << 55, 16384, false},
	} {
		got, err := ParseBitmapTable(table(c.a, c.b), h, b, c.size)
		if (err == nil) != c.works || err == nil && fmt.Sprint(got) != fmt.Sprint([]uint64{c.a, c.b}) {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v is not ErrCorrupt", c, err)
		}
	}
	if _, err := ParseBitmapTable(make([]byte, 8), h, b, 1<<20); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a short table: %v", err)
	}
}

func FuzzParseBitmapDirectory(f *testing.F) {
	h := Header{ClusterBits: 16, SizeBytes: 40 << 30}
	entry := appendBitmapEntry(nil, Bitmap{Name: "fuzz", GranularityBytes: 65536, Flags: 2, Type: 1, TableOffset: 65536, TableEntries: 2})
	f.Add(entry, uint32(1))
	f.Add(append(entry[:len(entry):len(entry)], entry...), uint32(2))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, count uint32) {
		h := h
		h.Bitmaps = &BitmapsExtension{Count: count, DirectoryBytes: int64(len(b)), DirectoryOffset: 65536}
		list, err := ParseBitmapDirectory(b, &h)
		if err != nil {
			return
		}
		var total int64
		for _, bitmap := range list {
			if bitmap.entryAt != total || bitmap.TableOffset <= 0 || bitmap.TableEntries == 0 || bitmap.GranularityBytes < 512 {
				t.Errorf("accepted %+v at %d", bitmap, total)
			}
			total += bitmap.entryBytes
		}
		if total != int64(len(b)) || uint32(len(list)) != count {
			t.Errorf("%d entries of %d bytes from %d bytes, count %d", len(list), total, len(b), count)
		}
	})
}

func FuzzParseBitmapTable(f *testing.F) {
	f.Add(make([]byte, 16), int64(1<<20), false)
	f.Add([]byte{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, int64(1<<17), false)
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 0}, int64(1<<17), true)
	f.Fuzz(func(t *testing.T, raw []byte, size int64, inUse bool) {
		h := &Header{ClusterBits: 16, SizeBytes: 40 << 30}
		b := Bitmap{GranularityBytes: 65536, TableOffset: 65536, TableEntries: uint32(len(raw) / 8), InUse: inUse}
		table, err := ParseBitmapTable(raw, h, b, size)
		if err != nil {
			return
		}
		if len(table)*8 != len(raw) {
			t.Fatalf("%d entries from %d bytes", len(table), len(raw))
		}
		for i, entry := range table {
			if entry > 1 && (entry%65536 != 0 || int64(entry) > size || binary.BigEndian.Uint64(raw[i*8:]) != entry) {
				t.Errorf("accepted entry %#x in a file of %d bytes", entry, size)
			}
		}
	})
}
