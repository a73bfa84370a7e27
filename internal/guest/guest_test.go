package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/testtool"
)

func openFile(t testing.TB, path string) qcow2.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return qcow2.NewOSFile(f)
}

// model is what the disk and its bitmap must be.
type model struct {
	content     []byte
	granularity int64
	dirty       map[int64]bool
}

func (m *model) mark(off, n int64) {
	for g := off / m.granularity; n > 0 && g <= (off+n-1)/m.granularity; g++ {
		m.dirty[g] = true
	}
}

// play makes random writes, zeroes and discards.
func play(t *testing.T, d *Disk, m *model, r *rand.Rand, cluster int64, count int) {
	t.Helper()
	size := int64(len(m.content))
	for range count {
		n := 1 + r.Int64N(6*cluster)
		off := r.Int64N(size)
		if r.IntN(3) == 0 {
			off, n = off/cluster*cluster, (n+cluster-1)/cluster*cluster
		}
		n = min(n, size-off)
		m.mark(off, n)
		var err error
		switch r.IntN(6) {
		case 0:
			err = d.Zero(off, n)
			clear(m.content[off : off+n])
		case 1:
			err = d.Discard(off, n)
			from, to := (off+cluster-1)/cluster*cluster, (off+n)/cluster*cluster
			if off+n == size {
				to = size
			}
			if from < to {
				clear(m.content[from:to])
			}
		default:
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			_, err = d.WriteAt(p, off)
			copy(m.content[off:], p)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, min(3*cluster, size-off))
		if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, m.content[off:off+int64(len(got))]) {
			t.Fatalf("read at %d: %v, or wrong bytes", off, err)
		}
	}
}

// dirtyGranules reads a bitmap bit by bit.
func dirtyGranules(t *testing.T, path, name string) map[int64]bool {
	t.Helper()
	f := openFile(t, path)
	image, err := qcow2.OpenImage(f, qcow2.ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := image.Bitmaps()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(b qcow2.Bitmap) bool { return b.Name == name })
	if i < 0 || list[i].InUse || !image.Header().BitmapsValid() {
		t.Fatalf("bitmap %q in %+v", name, list)
	}
	table, err := image.BitmapTable(list[i])
	if err != nil {
		t.Fatal(err)
	}
	dirty := map[int64]bool{}
	cluster := image.Header().ClusterBytes()
	for k, entry := range table {
		chunk := make([]byte, cluster)
		if entry > qcow2.BitmapAllDirty {
			if _, err := f.ReadAt(chunk, int64(entry)); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		for n := range cluster * 8 {
			if chunk[n/8]>>(n%8)&1 == 1 {
				dirty[int64(k)*cluster*8+n] = true
			}
		}
	}
	return dirty
}

func sameSet(a, b map[int64]bool) bool {
	for g := range a {
		if !b[g] {
			return false
		}
	}
	return len(a) == len(b)
}

func flagsOf(t *testing.T, path, name string) string {
	t.Helper()
	var info struct {
		Specific struct {
			Data struct {
				Bitmaps []struct {
					Name  string
					Flags []string
				}
			}
		} `json:"format-specific"`
	}
	out := testtool.Run(t, "qemu-img", "info", "-U", "--output=json", path)
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	for _, b := range info.Specific.Data.Bitmaps {
		if b.Name == name {
			return strings.Join(b.Flags, " ")
		}
	}
	t.Fatalf("QEMU has no bitmap %q: %s", name, out)
	return ""
}

func TestAGuestWritesAndRecordsAsQEMUReadsIt(t *testing.T) {
	for _, c := range []struct {
		name                       string
		size, cluster, granularity int64
	}{
		{"default", 40<<20 + 512, 65536, 65536},
		{"many table entries", 9<<20 + 1024, 512, 512},
		{"4 KiB", 20 << 20, 4096, 16384},
		{"2 MiB", 64 << 20, 2 << 20, 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, "disk.qcow2")
			testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt.Sprint("cluster_size=", c.cluster), path, fmt.Sprint(c.size))
			for _, args := range [][]string{{"on"}, {"off", "--disable"}} {
				testtool.Run(t, "qemu-img", append([]string{"bitmap", "--add", "-g", fmt.Sprint(c.granularity), path}, args...)...)
			}
			m := &model{content: make([]byte, c.size), granularity: c.granularity, dirty: map[int64]bool{}}
			r := rand.New(rand.NewPCG(1, uint64(c.cluster)))
			for range 3 {
				d, err := Open(openFile(t, path))
				if err != nil {
					t.Fatal(err)
				}
				play(t, d, m, r, c.cluster, testtool.Count(40, 400))
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				testtool.Run(t, "qemu-img", "check", path)
				raw := filepath.Join(folder, "model.raw")
				if err := os.WriteFile(raw, m.content, 0o644); err != nil {
					t.Fatal(err)
				}
				testtool.Run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
				if !sameSet(dirtyGranules(t, path, "on"), m.dirty) || len(dirtyGranules(t, path, "off")) != 0 {
					t.Fatal("the bitmaps are not what was written")
				}
				if on, off := flagsOf(t, path, "on"), flagsOf(t, path, "off"); on != "auto" || off != "" {
					t.Errorf("flags %q and %q", on, off)
				}
				// QEMU takes the bitmap over and gives it back.
				testtool.Run(t, "qemu-io", "-c", "write -P 3 1M 64k", path)
				copy(m.content[1<<20:], bytes.Repeat([]byte{3}, 64<<10))
				m.mark(1<<20, 64<<10)
				if !sameSet(dirtyGranules(t, path, "on"), m.dirty) {
					t.Fatal("QEMU did not take the bitmap over")
				}
			}
		})
	}
}

func TestAGuestRunsOnACreatedImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	f := openFile(t, path)
	w, err := qcow2.Create(f, qcow2.CreateOptions{SizeBytes: 1 << 30, Bitmap: &qcow2.BitmapSpec{Name: "b", GranularityBytes: 65536, Enabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte{5}, 1<<20), 600<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("x"), 600<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := dirtyGranules(t, path, "b"); len(got) != 1 || !got[600<<4] {
		t.Errorf("dirty: %v", got)
	}
	testtool.Run(t, "qemu-img", "check", path)
	testtool.Run(t, "qemu-io", "-c", "read -P 120 600M 1", "-c", "read -P 5 629145601 1048575", path)
}

func TestAKilledGuestLeavesItsBitmapsInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "10M")
	testtool.Run(t, "qemu-img", "bitmap", "--add", path, "b")
	d, err := Open(openFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 100), 5000); err != nil {
		t.Fatal(err)
	}
	if got := flagsOf(t, path, "b"); got != "in-use auto" {
		t.Errorf("while it runs: %q", got)
	}
	testtool.Run(t, "qemu-img", "check", path)
	// Nobody makes it good again.
	d, err = Open(openFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := flagsOf(t, path, "b"); got != "in-use auto" {
		t.Errorf("after another start: %q", got)
	}
	testtool.Run(t, "qemu-img", "check", path)
}

func TestABitmapOfOnesIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "10M")
	testtool.Run(t, "qemu-img", "bitmap", "--add", path, "b")
	f := openFile(t, path)
	image, err := qcow2.OpenImage(f, qcow2.ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := image.Bitmaps()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, list[0].TableOffset+7); err != nil {
		t.Fatal(err)
	}
	d, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := dirtyGranules(t, path, "b"); len(got) != 160 {
		t.Errorf("%d granules are dirty", len(got))
	}
}

func TestWhatAGuestCannotPlayIsRefused(t *testing.T) {
	for _, options := range []string{"compat=0.10", "refcount_bits=8", "extended_l2=on", "data_file=x.raw", "backing_file=/dev/null,backing_fmt=raw"} {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		if strings.HasPrefix(options, "data_file") {
			options = "data_file=" + path + ".raw"
		}
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M")
		if _, err := Open(openFile(t, path)); err == nil {
			t.Errorf("%s: played", options)
		}
	}
}

func TestCallsOutsideTheDiskOrAfterTheEndAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	d, err := Open(openFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if _, err := d.WriteAt(p, 1<<20-99); err == nil {
		t.Error("wrote over the end")
	}
	if err := d.Zero(-1, 10); err == nil {
		t.Error("zeroed before the start")
	}
	if err := d.Discard(1<<20, 1); err == nil {
		t.Error("discarded behind the end")
	}
	if n, err := d.ReadAt(p, 1<<20-50); n != 50 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := d.ReadAt(p, -1); err == nil {
		t.Error("read before the start")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(p, 0); err == nil {
		t.Error("wrote after the end")
	}
	if err := d.Close(); err == nil {
		t.Error("stopped twice")
	}
}

func BenchmarkGuestWrites(b *testing.B) {
	f := openFile(b, filepath.Join(b.TempDir(), "disk.qcow2"))
	p := bytes.Repeat([]byte("data"), 1<<18)
	b.SetBytes(256 << 20)
	for b.Loop() {
		w, err := qcow2.Create(f, qcow2.CreateOptions{SizeBytes: 1 << 40, Bitmap: &qcow2.BitmapSpec{Name: "b", GranularityBytes: 65536, Enabled: true}})
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		d, err := Open(f)
		if err != nil {
			b.Fatal(err)
		}
		for i := range int64(256) {
			if _, err := d.WriteAt(p, i<<20); err != nil {
				b.Fatal(err)
			}
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
