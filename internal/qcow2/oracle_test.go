package qcow2

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/testtool"
)

// mapEntry is a line of `qemu-img map`.
type mapEntry struct {
	Start, Length int64
	Depth         int
	Zero, Data    bool
	Offset        *int64
}

func qemuMap(t testing.TB, format, path string) []mapEntry {
	t.Helper()
	var list []mapEntry
	out := testtool.Run(t, "qemu-img", "map", "--output=json", "-f", format, path)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return list
}

// checkAgainstQEMU compares bytes, extents and mappings of an image with what
// QEMU says of it.
func checkAgainstQEMU(t *testing.T, format, path string) {
	t.Helper()
	d := openTestDisk(t, path, DiskOptions{Raw: format == "raw"})
	raw := filepath.Join(t.TempDir(), "expected.raw")
	testtool.Run(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
	defer os.Remove(raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != int64(len(want)) {
		t.Fatalf("size %d, QEMU says %d", d.Size(), len(want))
	}
	checkBytes(t, d, want)
	qemu := qemuMap(t, format, path)
	checkExtents(t, d, want, qemu)
	if d.Image() != nil {
		checkMappings(t, d, qemu)
	}
}

// checkBytes reads the disk at once, and in parallel random pieces.
func checkBytes(t *testing.T, d *Disk, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+100)
	n, err := d.ReadAt(got, 0)
	if n != len(want) || err != io.EOF {
		t.Fatalf("read %d of %d bytes: %v", n, len(want), err)
	}
	if at := firstDifference(got[:n], want); at >= 0 {
		t.Fatalf("byte %d is %#x, QEMU says %#x", at, got[at], want[at])
	}
	if len(want) == 0 {
		return
	}
	var group sync.WaitGroup
	for worker := range 3 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(worker)))
			p := make([]byte, 300<<10)
			for range 30 {
				off := r.Int64N(int64(len(want)))
				n := min(1+r.IntN(len(p)), len(want)-int(off))
				if r.IntN(2) == 0 {
					n = min(n, 700)
				}
				if got, err := d.ReadAt(p[:n], off); got != n || (err != nil && err != io.EOF) {
					t.Errorf("read %d bytes at %d: %d, %v", n, off, got, err)
					return
				}
				if at := firstDifference(p[:n], want[off:]); at >= 0 {
					t.Errorf("piece of %d at %d: byte %d differs", n, off, at)
					return
				}
			}
		})
	}
	group.Wait()
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b[:len(a)]) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// checkExtents requires a gapless, merged cover, zeros where zero is said, and
// zero said wherever QEMU finds no data.
func checkExtents(t *testing.T, d *Disk, want []byte, qemu []mapEntry) {
	t.Helper()
	list, err := extent.Collect(d.Extents(t.Context(), 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	var at int64
	for i, e := range list {
		if e.Off != at || e.Len <= 0 || (i > 0 && list[i-1].Zero == e.Zero) {
			t.Fatalf("extent %v after %d is no merged cover", e, at)
		}
		at = e.End()
		if e.Zero && len(bytes.Trim(want[e.Off:e.End()], "\x00")) != 0 {
			t.Fatalf("extent %v is not zero", e)
		}
	}
	if at != d.Size() {
		t.Fatalf("extents end at %d of %d", at, d.Size())
	}
	var expected []extent.Extent
	for _, m := range qemu {
		if !m.Data && !m.Zero && m.Length > 0 {
			t.Fatalf("neither data nor zero: %+v", m)
		}
		expected = append(expected, extent.Extent{Off: m.Start, Len: m.Length, Zero: !m.Data})
	}
	if got, want := merged(list), merged(expected); got != want {
		t.Fatalf("extents\n%s\nQEMU says\n%s", got, want)
	}
}

func merged(list []extent.Extent) string {
	var b strings.Builder
	var last extent.Extent
	for _, e := range list {
		switch {
		case e.Len == 0:
		case last.Len > 0 && last.Zero == e.Zero:
			last.Len += e.Len
		default:
			fmt.Fprintf(&b, "%v ", last)
			last = e
		}
	}
	fmt.Fprintf(&b, "%v", last)
	return b.String()
}

// checkMappings requires that data of the top image lies where QEMU says.
func checkMappings(t *testing.T, d *Disk, qemu []mapEntry) {
	t.Helper()
	m := d.Image()
	for _, q := range qemu {
		if q.Depth != 0 || q.Offset == nil || !q.Data {
			continue
		}
		host := *q.Offset
		for got, err := range m.Mappings(context.Background(), q.Start, q.Length) {
			if err != nil {
				t.Fatal(err)
			}
			if got.Kind != Data || got.Host != host {
				t.Fatalf("%+v, QEMU says it lies at %d", got, host)
			}
			host += got.Len
		}
	}
}
