package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
)

// memoryOpener opens files in memory by their name.
type memoryOpener map[string]*memoryFile

func (o memoryOpener) OpenLayer(r Reference) (File, string, error) {
	f, ok := o[r.Name]
	if !ok {
		return nil, "", fmt.Errorf("open %s: %w", r.Name, ErrNotAllowed)
	}
	return f, r.Name, nil
}

// backed gives a crafted image a backing file, named in its first cluster.
func backed(b craft, name, format string) craft {
	if format != "" {
		b.extend(112, extensionBackingFormat, []byte(format))
	}
	b.put64(headerBackingOffset, 256)
	b.put32(headerBackingBytes, uint32(len(name)))
	copy(b[256:], name)
	return b
}

// overlay is an empty image over a backing file.
func overlay(name, format string) craft {
	return backed(craftImage(9, smallCoverage, 0, 0), name, format)
}

func TestForeignFilesAreOpenedOnlyAsAllowed(t *testing.T) {
	data := craftImage(9, smallCoverage, 0, incompatDataFile)
	data.extend(112, extensionDataFile, []byte("disk.raw"))
	nameless := craftImage(9, smallCoverage, 0, incompatDataFile)
	refuse := memoryOpener{}
	for _, c := range []struct {
		name   string
		image  craft
		opener Opener
		want   error
		text   string
	}{
		{"no opener, backing", overlay("/etc/shadow", "raw"), nil, ErrNotAllowed, "--allow-dir"},
		{"no opener, data file", data, nil, ErrNotAllowed, "--allow-dir"},
		{"opener refuses", overlay("base", "raw"), refuse, ErrNotAllowed, "--allow-dir"},
		{"no format", overlay("base", ""), refuse, ErrUnsupported, "qemu-img rebase -u"},
		{"other format", overlay("base", "vmdk"), refuse, ErrUnsupported, `"vmdk"`},
		{"json", overlay(`json:{"file.filename":"/x"}`, "raw"), refuse, ErrNotAllowed, "not a plain file name"},
		{"nbd", overlay("nbd:unix:/x", "raw"), refuse, ErrNotAllowed, "not a plain file name"},
		{"https", overlay("https://host/x", "raw"), refuse, ErrNotAllowed, "not a plain file name"},
		{"nameless data file", nameless, refuse, ErrUnsupported, "where its data file is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := OpenDisk(&memoryFile{bytes: c.image}, "/images/top", DiskOptions{Opener: c.opener})
			if d != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("%v", err)
			}
			var place *Error
			if !errors.As(err, &place) {
				t.Fatalf("no place in %v", err)
			}
		})
	}
}

func TestAColonBehindASlashIsPartOfAFileName(t *testing.T) {
	base := &memoryFile{bytes: make([]byte, 1024)}
	d, err := OpenDisk(&memoryFile{bytes: overlay("./a:b", "raw")}, "top", DiskOptions{Opener: memoryOpener{"./a:b": base}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil || !base.closed {
		t.Error("the backing file is still open")
	}
}

func TestChainsThatLoopOrNeverEndAreRefused(t *testing.T) {
	opener := memoryOpener{"a": {bytes: overlay("b", "qcow2")}, "b": {bytes: overlay("a", "qcow2")}}
	_, err := OpenDisk(opener["a"], "a", DiskOptions{Opener: opener})
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "part of the disk already") {
		t.Errorf("loop: %v", err)
	}
	if !opener["b"].closed {
		t.Error("a file of the refused chain is still open")
	}
	// The top is number 0; number 8 is the last that may be there.
	for last := MaxBackingDepth; last <= MaxBackingDepth+1; last++ {
		opener := memoryOpener{}
		for i := range last {
			opener[fmt.Sprint(i)] = &memoryFile{bytes: overlay(fmt.Sprint(i+1), "qcow2")}
		}
		opener[fmt.Sprint(last)] = &memoryFile{bytes: craftImage(9, smallCoverage, 0, 0)}
		_, err := OpenDisk(opener["0"], "0", DiskOptions{Opener: opener})
		if (err == nil) != (last == MaxBackingDepth) {
			t.Errorf("%d backing files: %v", last, err)
		}
	}
}

func TestADataFileCannotBeALayerToo(t *testing.T) {
	b := craftImage(9, smallCoverage, 0, incompatDataFile)
	b.extend(112, extensionDataFile, []byte("top"))
	file := &memoryFile{bytes: b}
	if _, err := OpenDisk(file, "top", DiskOptions{Opener: memoryOpener{"top": file}}); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

func TestUntrustedImagesAreRefusedInEveryLayer(t *testing.T) {
	for bit, want := range map[uint64]error{incompatDirty: ErrDirty, incompatCorrupt: ErrCorrupt} {
		bad := craftImage(9, smallCoverage, 0, bit)
		if _, err := OpenDisk(&memoryFile{bytes: bad}, "top", DiskOptions{}); !errors.Is(err, want) {
			t.Errorf("top: %v", err)
		}
		if _, err := OpenDisk(&memoryFile{bytes: overlay("base", "qcow2")}, "top", DiskOptions{Opener: memoryOpener{"base": {bytes: bad}}}); !errors.Is(err, want) || !strings.Contains(err.Error(), "backing file base") {
			t.Errorf("backing file: %v", err)
		}
		if _, err := OpenImage(&memoryFile{bytes: bad}, ImageOptions{}); err != nil {
			t.Errorf("as an image alone: %v", err)
		}
	}
}

func TestReadAtFollowsTheContractOfReaderAt(t *testing.T) {
	b := craftImage(9, smallCoverage+512, 2, 0)
	b.put64(smallL2+8*64, uint64(len(b)-512)) // the last sector of the disk
	d, err := OpenDisk(&memoryFile{bytes: b}, "top", DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	size := d.Size()
	for _, c := range []struct {
		off  int64
		n    int
		want int
		err  error
	}{
		{0, 0, 0, nil}, {size, 0, 0, nil}, {0, 512, 512, nil}, {size - 10, 10, 10, nil}, {size - 10, 11, 10, io.EOF},
		{size, 1, 0, io.EOF}, {size + 1, 1, 0, io.EOF}, {math.MaxInt64, 1, 0, io.EOF}, {0, int(size) + 5, int(size), io.EOF},
	} {
		p := bytes.Repeat([]byte{0xee}, c.n)
		n, err := d.ReadAt(p, c.off)
		if n != c.want || err != c.err {
			t.Errorf("%d bytes at %d: %d, %v", c.n, c.off, n, err)
		}
		for i := range p[:n] {
			want := byte(0)
			if c.off+int64(i) >= size-512 {
				want = byte(len(b)/512 - 1)
			}
			if p[i] != want {
				t.Fatalf("%d bytes at %d: byte %d is %#x", c.n, c.off, i, p[i])
			}
		}
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is accepted")
	}
}

func TestATruncatedImageIsAnErrorAndNotZeros(t *testing.T) {
	b := craftImage(9, smallCoverage, 4, 0)
	for i := range 4 {
		b.put64(smallL2+8*i, uint64(len(b)-(4-i)*512))
	}
	for cut := 1; cut < len(b); cut += 17 {
		short := b[:len(b)-cut]
		d, err := OpenDisk(&memoryFile{bytes: short}, "top", DiskOptions{})
		if err == nil {
			got := make([]byte, 2048)
			_, err = d.ReadAt(got, 0)
			// QEMU leaves the end of the last cluster out of the file.
			want := make([]byte, 2048)
			copy(want, short[len(b)-2048:])
			if err == nil && (cut >= 512 || !bytes.Equal(got, want)) {
				t.Fatalf("%d bytes cut off are not noticed", cut)
			}
		}
		if err == nil {
			continue
		}
		if cut < 512 || !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes cut off: %v", cut, err)
		}
	}
}

func TestAFileThatShrinksAfterOpeningIsAnError(t *testing.T) {
	b := craftImage(9, smallCoverage, 1, 0)
	b.put64(smallL2, uint64(len(b)-512))
	file := &memoryFile{bytes: b}
	d, err := OpenDisk(file, "top", DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file.bytes = b[:len(b)-100]
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestErrorsNameTheLayer(t *testing.T) {
	base := craftImage(9, smallCoverage, 0, 0)
	base.put64(smallL2, 1<<40)
	d, err := OpenDisk(&memoryFile{bytes: overlay("base", "qcow2")}, "top", DiskOptions{Opener: memoryOpener{"base": {bytes: base}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.ReadAt(make([]byte, 10), 0)
	checkPlace(t, err, "L2 table entry", smallL2, "base")
	_, err = extent.Collect(d.Extents(t.Context(), 0, d.Size()))
	checkPlace(t, err, "L2 table entry", smallL2, "base")
}

func TestExtentsFindTheHolesOfRawFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file File
		want []extent.Extent
	}{
		{NewOSFile(f), []extent.Extent{{Off: 0, Len: 1 << 20, Zero: true}, {Off: 1 << 20, Len: 64 << 10}, {Off: 1<<20 + 64<<10, Len: 3<<20 - 64<<10, Zero: true}}},
		{plainFile{NewOSFile(f)}, []extent.Extent{{Off: 0, Len: 4 << 20}}},
	} {
		d, err := OpenDisk(c.file, path, DiskOptions{Raw: true})
		if err != nil {
			t.Fatal(err)
		}
		list, err := extent.Collect(d.Extents(t.Context(), 0, d.Size()))
		if err != nil || merged(list) != merged(c.want) {
			t.Errorf("%v, %v", list, err)
		}
		if d.Image() != nil {
			t.Error("a raw disk has an image")
		}
	}
}

func TestExtentsOfPartsAndOfNothing(t *testing.T) {
	d, err := OpenDisk(&memoryFile{bytes: craftMixed(0)}, "top", DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{0, 0}, {513, 3000}, {d.Size() - 1, 1}, {d.Size(), 0}} {
		n, err := extent.Total(d.Extents(t.Context(), r[0], r[1]))
		if err != nil || n != r[1] {
			t.Errorf("%v: %d bytes, %v", r, n, err)
		}
	}
	if _, err := extent.Collect(d.Extents(t.Context(), 0, d.Size()+1)); !errors.Is(err, extent.ErrRange) {
		t.Error(err)
	}
	for range d.Extents(t.Context(), 0, d.Size()) {
		break
	}
}

func TestReferencesResolveAsInQEMU(t *testing.T) {
	for _, c := range []struct {
		r    Reference
		want string
	}{
		{Reference{Backing, "base", "raw", "/images/top"}, "/images/base"},
		{Reference{Backing, "../base", "raw", "/images/a/top"}, "/images/base"},
		{Reference{Backing, "/base", "raw", "/images/top"}, "/base"},
		{Reference{DataFile, "data", "raw", "/images/top"}, "data"},
		{Reference{DataFile, "/data", "raw", "/images/top"}, "/data"},
	} {
		if got := c.r.Path(); got != c.want {
			t.Errorf("%+v: %s", c.r, got)
		}
	}
}

// FuzzOpenDisk reads whatever opens: the start and the end of the disk, and the
// first extents.
func FuzzOpenDisk(f *testing.F) {
	f.Add([]byte(craftMixed(0)), false)
	f.Add([]byte(overlay("base", "qcow2")), false)
	f.Add([]byte(overlay("raw", "raw")), true)
	f.Add([]byte(craftCompressed(9, 0, deflated(f, mixedBytes(512)))), false)
	f.Add([]byte(craftCompressed(9, incompatCompression, zstandard(f, mixedBytes(512)))), false)
	f.Add([]byte(craftSnapshots(1, craftSnapshot("1", "one", 1536, 1, nil))), false)
	data := craftImage(9, smallCoverage, 0, incompatDataFile)
	data.extend(112, extensionDataFile, []byte("raw"))
	data.put64(smallL2, entryCopied)
	f.Add([]byte(data), false)
	f.Fuzz(func(t *testing.T, b []byte, raw bool) {
		if len(b) > 64<<10 {
			return
		}
		opener := memoryOpener{"base": {bytes: craftMixed(0)}, "raw": {bytes: mixedBytes(5000)}}
		d, err := OpenDisk(&memoryFile{bytes: b}, "top", DiskOptions{Opener: opener, Raw: raw})
		if err != nil {
			return
		}
		defer d.Close()
		useDisk(t, d)
	})
}

// FuzzTables takes its input as the L2 table of an image that is sound
// otherwise.
func FuzzTables(f *testing.F) {
	mixed, extended := craftMixed(0), craftMixed(incompatExtendedL2)
	f.Add([]byte(mixed[smallL2:smallL2+45*8]), false, false)
	f.Add([]byte(mixed[smallL2:smallL2+45*8]), false, true)
	f.Add([]byte(extended[craftL2Cluster<<14:][:45*16]), true, false)
	f.Fuzz(func(t *testing.T, table []byte, extended, external bool) {
		bits, incompatible := uint32(9), uint64(0)
		if extended {
			bits, incompatible = 14, incompatExtendedL2
		}
		if external {
			incompatible |= incompatDataFile
		}
		cluster := 1 << bits
		b := craftImage(bits, uint64(40*cluster+512), 20, incompatible)
		copy(b[craftL2Cluster*cluster:][:cluster], table)
		if external {
			b.extend(112, extensionDataFile, []byte("raw"))
		}
		d, err := OpenDisk(&memoryFile{bytes: b}, "top", DiskOptions{Opener: memoryOpener{"raw": {bytes: mixedBytes(20 * cluster)}}})
		if err != nil {
			t.Fatal(err)
		}
		useDisk(t, d)
	})
}

// useDisk reads the start and the end of a disk, and its first extents. Every
// error must have a place.
func useDisk(t *testing.T, d *Disk) {
	p := make([]byte, 64<<10)
	var place *Error
	for _, off := range []int64{0, 700, d.Size() - 1000} {
		n, err := d.ReadAt(p, max(off, 0))
		if err == nil && n < len(p) {
			t.Fatalf("%d bytes without an error", n)
		}
		if err != nil && err != io.EOF && !errors.As(err, &place) {
			t.Fatalf("error without a place: %v", err)
		}
	}
	var at, count int64
	for e, err := range d.Extents(t.Context(), 0, d.Size()) {
		if err != nil {
			if !errors.As(err, &place) {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		if e.Off != at || e.Len <= 0 {
			t.Fatalf("extent %v after %d", e, at)
		}
		at = e.End()
		if count++; count > 10000 {
			return
		}
	}
	if at != d.Size() {
		t.Fatalf("extents end at %d of %d", at, d.Size())
	}
}
