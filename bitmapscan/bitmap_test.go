package bitmapscan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/testtool"
)

// geometry is the shape of a bitmap under test.
type geometry struct{ size, granularity, cluster int64 }

// build makes a bitmap and its file from bits, one bool a bit. It uses all
// kinds of entries, puts clusters of data side by side, apart and out of order,
// leaves ones in the tail, and ends the file where the last needed byte ends.
func build(t testing.TB, r *rand.Rand, g geometry, bits []bool) *Bitmap {
	t.Helper()
	b := &Bitmap{SizeBytes: g.size, GranularityBytes: g.granularity, ClusterBytes: g.cluster}
	b.Table = make([]uint64, TableEntries(g.size, g.granularity, g.cluster))
	perEntry := int(g.cluster * 8)
	order := make([]int, len(b.Table))
	for i := range order {
		order[i] = i
	}
	if r.IntN(3) == 0 {
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	file := make([]byte, g.cluster)
	for _, i := range order {
		mine := bits[i*perEntry : min((i+1)*perEntry, len(bits))]
		if !slices.Contains(mine, true) && r.IntN(4) > 0 {
			continue
		}
		if !slices.Contains(mine, false) && r.IntN(4) > 0 {
			b.Table[i] = entryAllDirty
			continue
		}
		if r.IntN(4) == 0 {
			file = append(file, bytes.Repeat([]byte{0xff}, int(g.cluster))...)
		}
		file = append(file, make([]byte, (g.cluster-int64(len(file))%g.cluster)%g.cluster)...)
		b.Table[i] = uint64(len(file))
		data := make([]byte, (len(mine)+7)/8)
		for j := range len(data) * 8 {
			if j < len(mine) && mine[j] || j >= len(mine) && r.IntN(2) == 0 {
				data[j/8] |= 1 << (j % 8)
			}
		}
		file = append(file, data...)
	}
	b.Data = bytes.NewReader(file)
	return b
}

// extentsOf is what Extents must give, a bit at a time.
func extentsOf(g geometry, bits []bool) []extent.Extent {
	var out []extent.Extent
	for i, set := range bits {
		if !set {
			continue
		}
		off := int64(i) * g.granularity
		end := min(off+g.granularity, g.size)
		if n := len(out); n > 0 && out[n-1].End() == off {
			out[n-1].Len = end - out[n-1].Off
			continue
		}
		out = append(out, extent.Extent{Off: off, Len: end - off})
	}
	return out
}

// draw makes bits in stretches, so that whole entries are often uniform.
func draw(r *rand.Rand, n int) []bool {
	bits := make([]bool, n)
	longest := 1 << r.IntN(14)
	for i, set := 0, r.IntN(2) == 0; i < n; set = !set {
		for end := i + 1 + r.IntN(longest); i < min(end, n); i++ {
			bits[i] = set
		}
	}
	return bits
}

func checkBitmap(t *testing.T, b *Bitmap, want []extent.Extent, setBits int64) {
	t.Helper()
	got, err := extent.Collect(b.Extents(t.Context()))
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("size %d, granularity %d, cluster %d: got %v (%v), want %v",
			b.SizeBytes, b.GranularityBytes, b.ClusterBytes, got, err, want)
	}
	if n, err := b.Count(t.Context()); err != nil || n != setBits {
		t.Fatalf("count %d (%v), want %d", n, err, setBits)
	}
}

func countTrue(bits []bool) (n int64) {
	for _, set := range bits {
		if set {
			n++
		}
	}
	return n
}

// grid has sizes round every place where something begins or ends. The ordinary
// run has it for the smallest cluster only, for the sake of its time.
func grid() []geometry {
	var out []geometry
	clusters := []int64{512, 1024, 4096}
	for _, cluster := range clusters[:testtool.Count(1, len(clusters))] {
		for _, granularity := range []int64{512, 4096, 65536, 2 << 30} {
			for _, bits := range []int64{1, 8, 63, 64, 65, 511, 512, 513, cluster * 8, cluster * 16, cluster*24 + 64} {
				for _, off := range []int64{-granularity, 1 - granularity, -512, -1, 0, 1, 512, granularity} {
					if size := bits*granularity + off; size >= 0 {
						out = append(out, geometry{size, granularity, cluster})
					}
				}
			}
		}
	}
	return out
}

func TestExtentsAndCountEqualTheReferenceOnEveryBoundary(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, g := range grid() {
		n := int(ceilDiv(g.size, g.granularity))
		for _, bits := range [][]bool{draw(r, n), draw(r, n), make([]bool, n), slices.Repeat([]bool{true}, n)} {
			checkBitmap(t, build(t, r, g, bits), extentsOf(g, bits), countTrue(bits))
		}
	}
}

func TestExtentsEqualTheReferenceOnRandomBitmaps(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range testtool.Count(40, 5000) {
		g := geometry{granularity: 512 << r.IntN(23), cluster: 512 << r.IntN(8)}
		g.size = r.Int64N(int64(1)<<r.IntN(20)*g.granularity) + 1
		bits := draw(r, int(ceilDiv(g.size, g.granularity)))
		checkBitmap(t, build(t, r, g, bits), extentsOf(g, bits), countTrue(bits))
	}
}

func TestTableEntriesFollowQemusRule(t *testing.T) {
	cases := []struct{ size, granularity, cluster, want int64 }{
		{0, 65536, 65536, 0},
		{1, 65536, 65536, 1},
		{32 << 30, 65536, 65536, 1},
		{32<<30 + 1, 65536, 65536, 2},
		{10 << 30, 512, 65536, 40},
		{1 << 30, 4096, 512, 64},
		{64 << 40, 65536, 65536, 2048},
		{64 << 40, 512, 512, 64 << 40 / 512 / 4096},
		{math.MaxInt64, 2 << 30, 2 << 20, 256},
	}
	for _, c := range cases {
		if got := TableEntries(c.size, c.granularity, c.cluster); got != c.want {
			t.Errorf("TableEntries(%d, %d, %d) = %d, want %d", c.size, c.granularity, c.cluster, got, c.want)
		}
	}
}

func TestTheLargestGeometriesDoNotOverflow(t *testing.T) {
	file := make([]byte, 4<<20)
	file[2<<20+1] = 0x80 // bit 15
	for _, size := range []int64{64 << 40, 64<<40 - 1, math.MaxInt64} {
		b := &Bitmap{SizeBytes: size, GranularityBytes: 2 << 30, ClusterBytes: 2 << 20, Data: bytes.NewReader(file)}
		b.Table = make([]uint64, TableEntries(size, b.GranularityBytes, b.ClusterBytes))
		b.Table[0] = 2 << 20
		checkBitmap(t, b, []extent.Extent{{Off: 15 * (2 << 30), Len: 2 << 30}}, 1)
		for i := range b.Table {
			b.Table[i] = entryAllDirty
		}
		checkBitmap(t, b, []extent.Extent{{Off: 0, Len: size}}, ceilDiv(size, b.GranularityBytes))
	}
}

func TestADamagedBitmapIsNeverTakenForAClean(t *testing.T) {
	good := func() *Bitmap {
		return &Bitmap{SizeBytes: 10 << 20, GranularityBytes: 512, ClusterBytes: 512,
			Table: []uint64{0, 1, 512, 1024, 0}, Data: bytes.NewReader(make([]byte, 1536))}
	}
	if _, err := good().Count(t.Context()); err != nil {
		t.Fatal(err)
	}
	cases := map[string]func(*Bitmap){
		"negative size":             func(b *Bitmap) { b.SizeBytes = -1 },
		"granularity below 512":     func(b *Bitmap) { b.GranularityBytes = 256 },
		"granularity above 2 GiB":   func(b *Bitmap) { b.GranularityBytes = 4 << 30 },
		"granularity of no power":   func(b *Bitmap) { b.GranularityBytes = 513 },
		"granularity 0":             func(b *Bitmap) { b.GranularityBytes = 0 },
		"cluster of no power":       func(b *Bitmap) { b.ClusterBytes = 1536 },
		"cluster above 2 MiB":       func(b *Bitmap) { b.ClusterBytes = 4 << 20 },
		"cluster below 512":         func(b *Bitmap) { b.ClusterBytes = 256 },
		"table too short":           func(b *Bitmap) { b.Table = b.Table[:4] },
		"table too long":            func(b *Bitmap) { b.Table = append(b.Table, 0) },
		"low reserved bit":          func(b *Bitmap) { b.Table[0] = 1 << 8 },
		"high reserved bit":         func(b *Bitmap) { b.Table[0] = 1 << 56 },
		"top bit":                   func(b *Bitmap) { b.Table[2] |= 1 << 63 },
		"data and all dirty":        func(b *Bitmap) { b.Table[2] |= 1 },
		"offset between clusters":   func(b *Bitmap) { b.ClusterBytes, b.Table = 1024, []uint64{0, 1, 512} },
		"entry at the end of file":  func(b *Bitmap) { b.Table[0] = 1536 },
		"entry far beyond the end":  func(b *Bitmap) { b.Table[4] = 1<<56 - 512 },
		"file one byte too short":   func(b *Bitmap) { b.Data = bytes.NewReader(make([]byte, 1535)) },
		"empty file":                func(b *Bitmap) { b.Data = bytes.NewReader(nil) },
		"reader that returns short": func(b *Bitmap) { b.Data = stingy{} },
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			b := good()
			spoil(b)
			_, err := extent.Collect(b.Extents(t.Context()))
			var place *Error
			if !errors.Is(err, ErrCorrupt) || !errors.As(err, &place) {
				t.Errorf("Extents: %v", err)
			}
			if _, err := b.Count(t.Context()); !errors.Is(err, ErrCorrupt) {
				t.Errorf("Count: %v", err)
			}
		})
	}
}

// stingy breaks the contract of io.ReaderAt: fewer bytes, and no error.
type stingy struct{}

func (stingy) ReadAt(p []byte, _ int64) (int, error) { return len(p) - 1, nil }

func TestOnlyTheBytesWithBitsOfTheDiskMustBeInTheFile(t *testing.T) {
	b := &Bitmap{SizeBytes: 12 * 512, GranularityBytes: 512, ClusterBytes: 512, Table: []uint64{512}}
	b.Data = bytes.NewReader(append(make([]byte, 512), 0x01, 0xf8))
	checkBitmap(t, b, []extent.Extent{{Off: 0, Len: 512}, {Off: 11 * 512, Len: 512}}, 2)
	b.Data = bytes.NewReader(append(make([]byte, 512), 0x01))
	if _, err := b.Count(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with one byte of two: %v", err)
	}
}

var errDisk = errors.New("input/output error")

// flaky fails at every read that touches the byte at bad.
type flaky struct {
	io.ReaderAt
	bad int64
}

func (f flaky) ReadAt(p []byte, off int64) (int, error) {
	if off <= f.bad && f.bad < off+int64(len(p)) {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestAReadErrorEndsTheStreamAndNamesThePlace(t *testing.T) {
	g := geometry{size: 4 * bufferBytes * 8 * 512, granularity: 512, cluster: 65536}
	b := build(t, rand.New(rand.NewPCG(1, 1)), g, draw(rand.New(rand.NewPCG(9, 9)), 4*bufferBytes*8))
	b.Data = flaky{b.Data, 3*bufferBytes + 17}
	_, err := extent.Collect(b.Extents(t.Context()))
	var place *Error
	if !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) || !errors.As(err, &place) || place.Structure != "data" || place.Offset <= 0 {
		t.Errorf("Extents: %v", err)
	}
	if _, err := b.Count(t.Context()); !errors.Is(err, errDisk) {
		t.Errorf("Count: %v", err)
	}
}

func TestACancelledContextEndsTheStream(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := &Bitmap{SizeBytes: 10 << 20, GranularityBytes: 512, ClusterBytes: 512, Table: []uint64{512, 0, 1024, 0, 1},
		Data: bytes.NewReader(bytes.Repeat([]byte{1}, 1536))}
	n := 0
	var last error
	for _, err := range b.Extents(ctx) {
		cancel()
		n++
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("after %d extents: %v", n, last)
	}
	if _, err := b.Count(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Count: %v", err)
	}
}

// tally notes the reads that go to a file.
type tally struct {
	io.ReaderAt
	reads, longest int
}

func (c *tally) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	c.longest = max(c.longest, len(p))
	return c.ReaderAt.ReadAt(p, off)
}

func TestNeighboursInTheFileAreReadTogetherAndMemoryIsBounded(t *testing.T) {
	const entries = 4096
	b := &Bitmap{SizeBytes: entries * 512 * 8 * 512, GranularityBytes: 512, ClusterBytes: 512}
	for i := range entries {
		b.Table = append(b.Table, uint64(i+1)*512)
	}
	c := &tally{ReaderAt: bytes.NewReader(make([]byte, (entries+1)*512))}
	b.Data = c
	if n, err := b.Count(t.Context()); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if want := entries * 512 / bufferBytes; c.reads != want || c.longest != bufferBytes {
		t.Errorf("%d reads of at most %d bytes, want %d of %d", c.reads, c.longest, want, bufferBytes)
	}
}

func TestTheStreamCanBeLeftAndBegunAgain(t *testing.T) {
	g := geometry{size: 1 << 30, granularity: 4096, cluster: 512}
	r := rand.New(rand.NewPCG(7, 7))
	bits := draw(r, int(g.size/g.granularity))
	want := extentsOf(g, bits)
	seq := build(t, r, g, bits).Extents(t.Context())
	for stop := range min(len(want), 200) {
		var got []extent.Extent
		for e := range seq {
			if len(got) == stop {
				break
			}
			got = append(got, e)
		}
		if !slices.Equal(got, want[:stop]) {
			t.Fatalf("the first %d: %v, want %v", stop, got, want[:stop])
		}
	}
}

func TestAFileOnDiskIsReadAsOneInMemory(t *testing.T) {
	g := geometry{size: 1<<30 - 700, granularity: 4096, cluster: 4096}
	r := rand.New(rand.NewPCG(8, 8))
	bits := draw(r, int(ceilDiv(g.size, g.granularity)))
	b := build(t, r, g, bits)
	f, err := os.Create(t.TempDir() + "/bits")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := b.Data.(*bytes.Reader).WriteTo(f); err != nil {
		t.Fatal(err)
	}
	b.Data = f
	checkBitmap(t, b, extentsOf(g, bits), countTrue(bits))
}

// FuzzBitmap feeds tables and data of any content: it must not panic, and what
// it gives must be within the disk, in order, and as much as Count says.
func FuzzBitmap(f *testing.F) {
	f.Add(int64(10<<20), uint8(0), uint8(0), []byte{0, 1, 2, 0, 3}, []byte{1, 2, 3})
	f.Add(int64(1), uint8(22), uint8(12), []byte{1}, []byte{})
	f.Add(int64(5000), uint8(0), uint8(0), []byte{2}, bytes.Repeat([]byte{0xff}, 600))
	f.Fuzz(func(t *testing.T, size int64, granularity, cluster uint8, table, data []byte) {
		b := &Bitmap{SizeBytes: size, GranularityBytes: 512 << (granularity % 24), ClusterBytes: 512 << (cluster % 14), Data: bytes.NewReader(data)}
		for _, e := range table { // 0 clean, 1 dirty, else a cluster, or damage
			if e > 1 && e < 250 {
				b.Table = append(b.Table, uint64(e-1)*uint64(b.ClusterBytes))
			} else {
				b.Table = append(b.Table, uint64(e))
			}
		}
		total, err := extent.Total(b.Extents(t.Context())) // checks the order
		n, errCount := b.Count(t.Context())
		if fmt.Sprint(err) != fmt.Sprint(errCount) {
			t.Fatalf("Extents: %v, Count: %v", err, errCount)
		}
		if err != nil {
			return
		}
		full := n * b.GranularityBytes
		if total < 0 || total > size || total > full || full-total >= b.GranularityBytes {
			t.Fatalf("%d bytes in extents, %d bits", total, n)
		}
	})
}
