package bitmapscan_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/qbackup/qbackup/bitmapscan"
	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/testtool"
)

// image is a qcow2 image with one bitmap, named b, that QEMU made.
type image struct {
	path                       string
	size, granularity, cluster int64
	tableOffset                int64
	bitmap                     *bitmapscan.Bitmap
}

func create(t *testing.T, size, granularity, cluster int64) *image {
	t.Helper()
	im := &image{path: filepath.Join(t.TempDir(), "disk.qcow2"), size: size, granularity: granularity, cluster: cluster}
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", cluster), im.path, strconv.FormatInt(size, 10))
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", strconv.FormatInt(granularity, 10), im.path, "b")
	return im
}

// write lets QEMU write at random places, and returns what that makes dirty.
func (im *image) write(t *testing.T, r *rand.Rand, writes int) []extent.Extent {
	t.Helper()
	var args []string
	var dirty []extent.Seq
	for i := range writes {
		off := r.Int64N(im.size/512) * 512
		n := min(512+r.Int64N(16)*512, im.size-off)
		verb := "write"
		if i%3 == 0 {
			verb, n = "write -z", min(n*r.Int64N(4096)+n, im.size-off)
		}
		args = append(args, "-c", fmt.Sprintf("%s %d %d", verb, off, n))
		dirty = append(dirty, extent.Of(extent.Extent{Off: off, Len: n}))
	}
	testtool.Run(t, "qemu-io", append(args, "-t", "unsafe", "-f", "qcow2", im.path)...)
	all, err := extent.Collect(extent.Align(extent.Union(dirty...), im.granularity, im.size))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// open reads the place and the table of the bitmap, and no more than that: it
// relies on the layout that QEMU has just written.
func (im *image) open(t *testing.T) {
	t.Helper()
	f, err := os.Open(im.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	read := func(off int64, n int) []byte {
		p := make([]byte, n)
		if _, err := f.ReadAt(p, off); err != nil {
			t.Fatalf("read %d bytes at %d: %v", n, off, err)
		}
		return p
	}
	be := binary.BigEndian
	const bitmapsExtension = 0x23852875
	at := int64(be.Uint32(read(100, 4))) // the header's length: extensions follow
	for be.Uint32(read(at, 4)) != bitmapsExtension {
		if be.Uint32(read(at, 4)) == 0 {
			t.Fatal("the image has no bitmaps extension")
		}
		at += 8 + (int64(be.Uint32(read(at+4, 4)))+7)&^7
	}
	directory := int64(be.Uint64(read(at+8+16, 8)))
	im.tableOffset = int64(be.Uint64(read(directory, 8)))
	entries := int(be.Uint32(read(directory+8, 4)))
	if bits := read(directory+17, 1)[0]; int64(1)<<bits != im.granularity {
		t.Fatalf("granularity 2^%d, want %d", bits, im.granularity)
	}
	table := make([]uint64, entries)
	for i := range table {
		table[i] = be.Uint64(read(im.tableOffset+int64(i)*8, 8))
	}
	im.bitmap = &bitmapscan.Bitmap{SizeBytes: im.size, GranularityBytes: im.granularity, ClusterBytes: im.cluster, Table: table, Data: f}
}

// asQemuSeesIt asks qemu-nbd for the bitmap's dirty extents.
func (im *image) asQemuSeesIt(t *testing.T) []extent.Extent {
	t.Helper()
	// The path of a socket may have about 100 bytes, too few for t.TempDir.
	folder, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	socket, pid := filepath.Join(folder, "s"), filepath.Join(folder, "pid")
	testtool.Run(t, "qemu-nbd", "--fork", "--persistent", "--read-only", "--cache=unsafe", "--format=qcow2", "--bitmap=b",
		"--pid-file="+pid, "--socket="+socket, im.path)
	defer stop(t, pid)
	out := testtool.Run(t, "qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+socket+",x-dirty-bitmap=qemu:dirty-bitmap:b")
	var spans []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(out), &spans); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	var dirty []extent.Seq
	for _, s := range spans {
		if !s.Data { // this is how the NBD driver shows dirty
			dirty = append(dirty, extent.Of(extent.Extent{Off: s.Start, Len: s.Length}))
		}
	}
	all, err := extent.Collect(extent.Union(dirty...))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// stop ends the server whose process id is in a file.
func stop(t *testing.T, pidFile string) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Error(err)
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Error(err)
		return
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// compare scans the bitmap and wants the given extents.
func (im *image) compare(t *testing.T, what string, want []extent.Extent) {
	t.Helper()
	got, err := extent.Collect(im.bitmap.Extents(t.Context()))
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%s: got %v (%v), want %v", what, got, err, want)
	}
	units := int64(0)
	for _, e := range want {
		units += (e.Len + im.granularity - 1) / im.granularity
	}
	if n, err := im.bitmap.Count(t.Context()); err != nil || n != units {
		t.Fatalf("%s: %d bits (%v), want %d", what, n, err, units)
	}
}

func TestTheScanSeesWhatQemuWrote(t *testing.T) {
	testtool.Need(t, "qemu-img")
	testtool.Need(t, "qemu-io")
	testtool.Need(t, "qemu-nbd")
	cases := []struct{ size, granularity, cluster int64 }{
		{64 << 20, 65536, 65536},
		{64<<20 - 512, 512, 512},
		{40<<30 + 1536, 65536, 65536},
		{100<<20 + 512, 512, 2 << 20},
		{64 << 40, 2 << 30, 65536},
		{3<<30 + 1536, 4096, 4096},
		{7<<40 + 4096, 1 << 20, 65536},
	}
	cases = cases[:testtool.Count(5, len(cases))]
	r := rand.New(rand.NewPCG(21, 22))
	for _, c := range cases {
		t.Run(fmt.Sprintf("size_%d_granularity_%d_cluster_%d", c.size, c.granularity, c.cluster), func(t *testing.T) {
			im := create(t, c.size, c.granularity, c.cluster)
			im.open(t)
			im.compare(t, "before any write", nil)
			want := im.write(t, r, testtool.Count(24, 400))
			im.open(t)
			im.compare(t, "after the writes", want)
			if seen := im.asQemuSeesIt(t); !slices.Equal(seen, want) {
				t.Fatalf("QEMU sees %v, want %v", seen, want)
			}
			im.requireWholeClusters(t)
		})
	}
}

// requireWholeClusters makes sure of what the scan relies on: QEMU puts the
// whole of each cluster of bitmap data into the file, so that demanding the
// bytes that hold bits of the disk never refuses an image of its making.
func (im *image) requireWholeClusters(t *testing.T) {
	t.Helper()
	info, err := os.Stat(im.path)
	if err != nil {
		t.Fatal(err)
	}
	for i, entry := range im.bitmap.Table {
		if entry > 1 && int64(entry)+im.cluster > info.Size() {
			t.Errorf("entry %d at %d passes the end of the file at %d", i, entry, info.Size())
		}
	}
}

func TestTheScanReadsAllDirtyEntriesAndTailBitsAsQemuDoes(t *testing.T) {
	testtool.Need(t, "qemu-nbd")
	// Ten entries of 4096 bits, the last of which has bits beyond the disk.
	im := create(t, 10*4096*512-700*512, 512, 512)
	want := im.write(t, rand.New(rand.NewPCG(31, 32)), 60)
	im.open(t)
	im.compare(t, "before the change", want)

	f, err := os.OpenFile(im.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	allDirty := []byte{0, 0, 0, 0, 0, 0, 0, 1}
	for _, entry := range []int64{0, 4, 5} {
		if _, err := f.WriteAt(allDirty, im.tableOffset+entry*8); err != nil {
			t.Fatal(err)
		}
	}
	last := im.bitmap.Table[9]
	if last <= 1 {
		t.Fatalf("the last entry is %d: the writes left it without data", last)
	}
	if _, err := f.WriteAt(slices.Repeat([]byte{0xff}, 512-400), int64(last)+400); err != nil {
		t.Fatal(err)
	}
	im.open(t)
	seen := im.asQemuSeesIt(t)
	if end := seen[len(seen)-1].End(); end != im.size || seen[0].Off != 0 {
		t.Fatalf("QEMU does not see what was changed: %v", seen)
	}
	im.compare(t, "after the change", seen)
}
