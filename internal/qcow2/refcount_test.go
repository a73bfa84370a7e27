package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestRefcountsOfEveryWidthKeepTheirNeighbours(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for width := 1; width <= 64; width *= 2 {
		n := int64(512 * 8 / width)
		block, want := make([]byte, 512), make([]uint64, n)
		for range 4000 {
			i := random.Int64N(n)
			want[i] = random.Uint64() >> (64 - width)
			setRefcountAt(block, width, i, want[i])
		}
		for i, v := range want {
			if got := refcountAt(block, width, int64(i)); got != v {
				t.Fatalf("width %d, entry %d: %#x, want %#x", width, i, got, v)
			}
		}
	}
}

func TestSettingARefcountToOneOrZeroChangesOneByte(t *testing.T) {
	for width := 1; width <= 64; width *= 2 {
		block := make([]byte, 512)
		setRefcountAt(block, width, 3, 1)
		if n := len(block) - countZero(block); n != 1 {
			t.Errorf("width %d: %d bytes change", width, n)
		}
	}
}

func countZero(b []byte) int {
	n := 0
	for _, v := range b {
		if v == 0 {
			n++
		}
	}
	return n
}

func TestRefcountsAgreeWithQEMUAtEveryWidth(t *testing.T) {
	for width := 1; width <= 64; width *= 2 {
		path := createImage(t, "4M", "cluster_size=512", fmt.Sprintf("refcount_bits=%d", width))
		testtool.Run(t, "qemu-io", "-c", "write 0 1M", "-c", "write 2M 300k", path)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if leaks, wrong, err := checkImage(b); leaks+wrong > 0 || err != nil {
			t.Errorf("width %d: %d leaks, %d errors, %v", width, leaks, wrong, err)
		}
		h, err := ParseHeader(b, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		// A free cluster that is marked used is a leak for QEMU, a used one
		// that is marked free an error.
		end := (int64(len(b)) + 511) >> h.ClusterBits
		for _, c := range []struct {
			cluster  int64
			old, new uint64
			exit     int
		}{{end, 0, 1, 3}, {h.L1Offset >> h.ClusterBits, 1, 0, 2}} {
			f := sim.NewRecordingFile(b)
			if _, err := f.WriteAt(make([]byte, 512), end*512); err != nil {
				t.Fatal(err)
			}
			r, err := openRefcounts(f, h, int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if err := r.stage(c.cluster, 1, c.old, c.new); err != nil {
				t.Fatal(err)
			}
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
			edited := filepath.Join(t.TempDir(), "edited.qcow2")
			if err := os.WriteFile(edited, f.Content(), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, code := testtool.Try(t, "qemu-img", "check", edited); code != c.exit {
				t.Errorf("width %d, %d to %d: exit %d, want %d\n%s", width, c.old, c.new, code, c.exit, out)
			}
		}
	}
}

// fullImage returns an image in which every cluster that a refcount block counts
// is in use.
func fullImage(t *testing.T, size string, until int64) []byte {
	t.Helper()
	path := createImage(t, size, "cluster_size=512")
	testtool.Run(t, "qemu-io", "-c", fmt.Sprintf("write 0 %d", until), path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ParseHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := openRefcounts(sim.NewRecordingFile(b), h, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for no, block := range r.table {
		if block == 0 {
			continue
		}
		for i := range r.perBlock() {
			if refcountAt(b[block:block+512], 16, i) == 0 {
				setRefcountAt(b[block:block+512], 16, i, 1) // leaked from now on
				end := (int64(no)*r.perBlock() + i + 1) * 512
				b = append(b, make([]byte, max(0, end-int64(len(b))))...)
			}
		}
	}
	return b
}

func TestARefcountBlockIsAddedWhereItCanBeDoneSafely(t *testing.T) {
	before := fullImage(t, "4M", 900<<10)
	if int64(len(before))%(256*512) != 0 {
		t.Fatalf("the image has %d bytes", len(before))
	}
	add := []BitmapSpec{added}
	proveCrashes(t, before, false, replace(add, nil), oneOf(nil, nil, add, []string{final}))
	f := sim.NewRecordingFile(before)
	if err := replace(add, nil)(f); err != nil {
		t.Fatal(err)
	}
	if _, wrong, err := checkImage(f.Content()); wrong > 0 || err != nil {
		t.Errorf("%d errors, %v", wrong, err)
	}
}

func TestWhereNoRefcountBlockCanBeAddedThereIsNoSpace(t *testing.T) {
	// Just above 16 MiB the offset of a block has more than one byte that is
	// not zero.
	before := fullImage(t, "64M", 16<<20)
	f := sim.NewRecordingFile(before)
	if err := replace([]BitmapSpec{added}, nil)(f); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	if len(f.Ops()) > 0 {
		t.Errorf("wrote before it refused:\n%s", opsText(f.Ops()))
	}
}

func TestFreeClustersAreFoundAsNeighbours(t *testing.T) {
	h := &Header{ClusterBits: 9, RefcountBits: 16}
	// Two blocks of 256 entries at 512 and 1024.
	b := make([]byte, 1536)
	for i := range 512 {
		binary.BigEndian.PutUint16(b[512+2*i:], 1)
	}
	free := func(clusters ...int) {
		for _, c := range clusters {
			binary.BigEndian.PutUint16(b[512+2*c:], 0)
		}
	}
	free(7, 100, 101, 255, 256, 257, 400)
	for _, c := range []struct{ fileSize, count, want int64 }{
		{512 * 512, 1, 7}, {512 * 512, 2, 100}, {512 * 512, 3, 255}, {512 * 512, 4, -1},
		{300 * 512, 1, 256}, {300 * 512, 2, 256}, {300 * 512, 3, 255},
	} {
		r := &refcounts{f: memory(b), h: h, fileSize: c.fileSize, table: []uint64{512, 1024, 0}, block: make([]byte, 512), blockNo: -1, pending: map[int64]uint64{}}
		got, ok, err := r.findFree(c.count)
		if err != nil || ok != (c.want >= 0) || ok && got != c.want {
			t.Errorf("%+v: %d, %v, %v", c, got, ok, err)
		}
	}
}
