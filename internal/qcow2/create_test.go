package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

// createFile makes an empty file.
func createFile(t testing.TB, name string) (string, File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return path, NewOSFile(f)
}

func TestACreatedImageIsCleanAndEqualForQEMU(t *testing.T) {
	for _, c := range []struct {
		clusterBits uint8
		size        int64
	}{
		{0, 1 << 30}, {16, 0}, {16, 512}, {16, 65536}, {16, 65536*8192 + 512}, {16, 3<<30 - 512},
		{9, 1 << 20}, {9, 10<<20 + 512}, {12, 100<<20 - 1024}, {21, 3<<30 + 512}, {16, 1 << 40},
	} {
		t.Run(fmt.Sprint(c.clusterBits, " ", c.size), func(t *testing.T) {
			path, f := createFile(t, "new.qcow2")
			raw, reference := createFile(t, "reference.raw")
			o := CreateOptions{SizeBytes: c.size, ClusterBits: c.clusterBits}
			if c.size > 0 {
				o.Bitmap = &BitmapSpec{Name: final, GranularityBytes: 65536, Enabled: true}
			}
			w, err := Create(f, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := reference.(*osFile).f.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			fill(t, w, reference, c.size, w.header.ClusterBytes())
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			testtool.Run(t, "qemu-img", "check", path)
			if c.size > 0 {
				testtool.Run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
				if list := qemuBitmaps(t, path); len(list) != 1 || list[0].Name != final || fmt.Sprint(list[0].Flags) != "[auto]" {
					t.Errorf("bitmaps: %+v", list)
				}
				testtool.Run(t, "qemu-io", "-c", "write 0 512", path)
				testtool.Run(t, "qemu-img", "check", path)
			}
			d, err := OpenDisk(f, path, DiskOptions{})
			if err != nil || d.Size() != c.size {
				t.Errorf("%v", err)
			}
		})
	}
}

// fill writes random stretches in parallel and in no order, the first and the
// last cluster among them.
func fill(t *testing.T, w *Writer, reference File, size, cluster int64) {
	t.Helper()
	clusters := (size + cluster - 1) / cluster
	random := rand.New(rand.NewPCG(1, 1))
	starts := map[int64]int64{}
	if clusters > 0 {
		starts[0] = 1
		starts[clusters-1] = 1
	}
	step := max(clusters/20, 1)
	for first := step; first+step < clusters; first += step {
		starts[first+random.Int64N(step)/2] = 1 + random.Int64N(min(step, 20, 4<<20/cluster)+1)/2
	}
	var group sync.WaitGroup
	for first, count := range starts {
		p := make([]byte, min(count*cluster, size-first*cluster))
		for i := 0; i < len(p); i += 8 {
			binary.BigEndian.PutUint64(p[i:], uint64(first)<<32+uint64(i)+1)
		}
		group.Go(func() {
			if n, err := w.WriteAt(p, first*cluster); err != nil || n != len(p) {
				t.Errorf("wrote %d bytes of %d, %v", n, len(p), err)
			}
			if _, err := reference.WriteAt(p, first*cluster); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestAWriteMayCrossL2Tables(t *testing.T) {
	path, f := createFile(t, "new.qcow2")
	w, err := Create(f, CreateOptions{SizeBytes: 1 << 20, ClusterBits: 9})
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte("0123456789abcdef"), 200<<10/16)
	if _, err := w.WriteAt(p, 512); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDisk(f, path, DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if _, err := d.ReadAt(got, 512); err != nil || !bytes.Equal(got, p) {
		t.Error(err)
	}
	testtool.Run(t, "qemu-img", "check", path)
}

func TestACreatedImageIsNoImageBeforeItIsComplete(t *testing.T) {
	stale, err := os.ReadFile(createImage(t, "4M", "cluster_size=512"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		stale = append(stale, bytes.Repeat([]byte{0xa5}, 512)...)
	}
	r := sim.NewRecordingFile(stale)
	w, err := Create(r, CreateOptions{SizeBytes: 1 << 20, ClusterBits: 9, Bitmap: &BitmapSpec{Name: "b", GranularityBytes: 512, Enabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	wiped := len(r.Ops())
	if _, err := w.WriteAt(bytes.Repeat([]byte{7}, 64<<10), 512<<10); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	complete := 0
	for c := range r.Crashes(sim.CrashOptions{TornBytes: 64, Subsets: 1, Seed: 3}) {
		if c.Done < wiped {
			continue // the old image is still there, or half wiped
		}
		b := r.After(c)
		if len(b) < 4 || string(b[:4]) != "QFI\xfb" {
			continue
		}
		complete++
		if leaks, wrong, err := checkImage(b[:w.next<<9]); leaks+wrong > 0 || err != nil {
			t.Fatalf("%v: %d leaks, %d errors, %v", c, leaks, wrong, err)
		}
	}
	if complete == 0 {
		t.Error("never complete")
	}
	path, f := createFile(t, "over.qcow2")
	if _, err := f.WriteAt(r.Content(), 0); err != nil {
		t.Fatal(err)
	}
	testtool.Run(t, "qemu-img", "check", path)
	testtool.Run(t, "qemu-io", "-c", "read -P 7 512k 64k", "-c", "read -P 0 0 512k", "-c", "read -P 0 576k 448k", path)
}

func TestCreateRefuses(t *testing.T) {
	for _, o := range []CreateOptions{
		{SizeBytes: -512}, {SizeBytes: 513}, {SizeBytes: 512, ClusterBits: 8}, {SizeBytes: 512, ClusterBits: 22},
		{SizeBytes: 1 << 40, ClusterBits: 9}, {SizeBytes: 1<<63 - 512},
		{SizeBytes: 0, Bitmap: &BitmapSpec{Name: "b", GranularityBytes: 512}},
		{SizeBytes: 512, Bitmap: &BitmapSpec{Name: "b", GranularityBytes: 100}},
		{SizeBytes: 512, Bitmap: &BitmapSpec{GranularityBytes: 512}},
	} {
		r := sim.NewRecordingFile([]byte("something"))
		if _, err := Create(r, o); err == nil || len(r.Ops()) > 0 {
			t.Errorf("%+v: %v, %d operations", o, err, len(r.Ops()))
		}
	}
}

func TestAWriterRefuses(t *testing.T) {
	r := sim.NewRecordingFile(nil)
	w, err := Create(r, CreateOptions{SizeBytes: 3*65536 + 512})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ off, n int64 }{{-65536, 65536}, {512, 65536}, {0, 65535}, {0, 512}, {3 * 65536, 65536}, {4 * 65536, 65536}, {3 * 65536, 1}} {
		if _, err := w.WriteAt(make([]byte, c.n), c.off); err == nil {
			t.Errorf("%+v was written", c)
		}
	}
	if n, err := w.WriteAt(make([]byte, 512), 3*65536); n != 512 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := w.WriteAt(make([]byte, 65536+512), 2*65536); err == nil {
		t.Error("a cluster was written twice")
	}
	if err := w.Close(); err == nil {
		t.Error("an incomplete image was closed as if complete")
	}
	if err := w.Close(); err == nil {
		t.Error("closed twice")
	}
}

func TestAFailedWriteIsNotForgotten(t *testing.T) {
	f := &fullFile{RecordingFile: sim.NewRecordingFile(nil), limit: 300 << 10}
	w, err := Create(f, CreateOptions{SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 512<<10), 0); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
	if err := w.Close(); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
	if _, err := w.WriteAt(make([]byte, 65536), 0); err == nil {
		t.Error("wrote after Close")
	}
}

// discard is a file that keeps only what is small: tables, not data.
type discard struct{ *sim.RecordingFile }

func (d discard) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }
func (d discard) ReadAt(p []byte, off int64) (int, error)  { clear(p); return len(p), nil }
func (d discard) Sync() error                              { return nil }

var _ io.ReaderAt = discard{}

func BenchmarkCreate(b *testing.B) {
	_, f := createFile(b, "bench.qcow2")
	p := bytes.Repeat([]byte("data"), 1<<18)
	b.SetBytes(256 << 20)
	for b.Loop() {
		w, err := Create(f, CreateOptions{SizeBytes: 1 << 40})
		if err != nil {
			b.Fatal(err)
		}
		for i := range int64(256) {
			if _, err := w.WriteAt(p, i<<30); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreateTables is the cost beside the writing of data: 1 TiB in pieces
// of 1 MiB.
func BenchmarkCreateTables(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(1 << 40)
	b.ReportAllocs()
	for b.Loop() {
		w, err := Create(discard{}, CreateOptions{SizeBytes: 1 << 40})
		if err != nil {
			b.Fatal(err)
		}
		for i := range int64(1 << 20) {
			if _, err := w.WriteAt(p, i<<20); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
