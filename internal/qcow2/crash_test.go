package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

// The names of the bitmaps in the images of these tests. The first two are as
// long as each other, as Restart needs it.
const (
	ours    = "qb1-0a1b2c3d-06f4k2zx0c00000000000000a1-06f4k2zx0c00000000000000b2"
	interim = "qb1-0a1b2c3d-06g5m3ay1d11111111111111c3-06f4k2zx0c00000000000000b2"
	final   = "qb1-0a1b2c3d-06g5m3ay1d11111111111111c3-00000000000000000000000000"
	foreign = "somebody else's"
)

// scenario is an image with the bitmaps ours, which has dirty bits all over,
// and foreign, which has some.
type scenario struct {
	name        string
	size        string
	options     []string
	granularity int
	// writes are commands of qemu-io; some are always made.
	writes  []string
	prepare func(t testing.TB, path string)
	// big images are tried in fewer states.
	big bool
}

var scenarios = []scenario{
	{name: "default geometry", size: "100M", granularity: 65536},
	{name: "clusters of 512 bytes, 1-bit refcounts", size: "9M", granularity: 512,
		options: []string{"cluster_size=512", "refcount_bits=1"}, writes: []string{"write 8M 64k", "write 4000k 512"}},
	{name: "clusters of 512 bytes, 16-bit refcounts", size: "9M", granularity: 512, options: []string{"cluster_size=512"}},
	{name: "clusters of 4096 bytes, 64-bit refcounts", size: "300M", granularity: 4096,
		options: []string{"cluster_size=4096", "refcount_bits=64"}, writes: []string{"write 150M 64k", "write 290M 64k"}},
	{name: "clusters of 1024 bytes, 4-bit refcounts", size: "20M", granularity: 512, options: []string{"cluster_size=1024", "refcount_bits=4"}},
	{name: "clusters of 2 MiB", size: "1G", granularity: 65536, options: []string{"cluster_size=2M"}, big: true},
	{name: "extended L2 entries", size: "100M", granularity: 65536, options: []string{"extended_l2=on", "cluster_size=16k"}},
	{name: "zstd compression", size: "100M", granularity: 65536, options: []string{"compression_type=zstd"}},
	{name: "internal snapshots", size: "9M", granularity: 512, options: []string{"cluster_size=4096"}, prepare: func(t testing.TB, path string) {
		testtool.Run(t, "qemu-img", "snapshot", "-c", "one", path)
		testtool.Run(t, "qemu-io", "-c", "write 1M 64k", path)
		testtool.Run(t, "qemu-img", "snapshot", "-c", "two", path)
	}},
	{name: "backing file", size: "9M", granularity: 65536},
	{name: "backing file, clusters of 512 bytes", size: "9M", granularity: 512, options: []string{"cluster_size=512"}},
	{name: "external data file", size: "9M", granularity: 65536},
	{name: "table entries of ones", size: "9M", granularity: 512, options: []string{"cluster_size=512"}, prepare: func(t testing.TB, path string) {
		setTableEntry(t, path, ours, 1, BitmapAllDirty)
	}},
}

// someScenarios returns those with one of the words in their names, or all in a
// long test.
func someScenarios(words ...string) []scenario {
	return slices.DeleteFunc(slices.Clone(scenarios), func(s scenario) bool {
		return testtool.Count(0, 1) == 0 && !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(s.name, w) })
	})
}

// setTableEntry overwrites an entry that refers to no bits. QEMU never writes
// BitmapAllDirty itself.
func setTableEntry(t testing.TB, path, name string, i int, entry uint64) {
	t.Helper()
	f := openFile(t, path)
	m, err := OpenImage(f, ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := bitmapOf(t, m, name)
	table, err := m.BitmapTable(b)
	if err != nil || table[i] != BitmapAllClean {
		t.Fatalf("entry %d of %#x, %v", i, table, err)
	}
	if _, err := f.WriteAt([]byte{byte(entry)}, b.TableOffset+int64(i)*8+7); err != nil {
		t.Fatal(err)
	}
}

func bitmapOf(t testing.TB, m *Image, name string) Bitmap {
	t.Helper()
	list, err := m.Bitmaps()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if b.Name == name {
			return b
		}
	}
	t.Fatalf("no bitmap %q in %+v", name, list)
	return Bitmap{}
}

// make builds the image and returns its bytes. What it refers to stays where it
// is until the test ends.
func (s scenario) make(t testing.TB, bitmaps bool) []byte {
	t.Helper()
	folder := t.TempDir()
	options := slices.Clone(s.options)
	switch {
	case strings.HasPrefix(s.name, "backing"):
		base := filepath.Join(folder, "base.raw")
		if err := os.WriteFile(base, make([]byte, 5<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		options = append(options, "backing_file="+strings.ReplaceAll(base, ",", ",,"), "backing_fmt=raw")
	case strings.HasPrefix(s.name, "external"):
		options = append(options, "data_file="+strings.ReplaceAll(filepath.Join(folder, "data.raw"), ",", ",,"))
	}
	path := createImage(t, s.size, options...)
	if bitmaps {
		g := fmt.Sprint(s.granularity)
		testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", g, path, ours)
		testtool.Run(t, "qemu-img", "bitmap", "--add", path, foreign)
		testtool.Run(t, "qemu-img", "bitmap", "--add", "--disable", "-g", g, path, "a third")
	}
	args := []string{"-c", "write 0 200k", "-c", "write 5000k 130k", "-c", "write 6000k 1k"}
	for _, w := range s.writes {
		args = append(args, "-c", w)
	}
	testtool.Run(t, "qemu-io", append(args, path)...)
	if s.prepare != nil && bitmaps {
		s.prepare(t, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// memory is an image that is only read.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) WriteAt([]byte, int64) (int, error)      { return 0, errors.ErrUnsupported }
func (m memory) Sync() error                             { return errors.ErrUnsupported }
func (m memory) Size() (int64, error)                    { return int64(len(m)), nil }

// bitmapState is what an image says of one bitmap.
type bitmapState struct {
	enabled     bool
	granularity int64
	bits        string
}

// parseBitmaps reads all valid bitmaps with their bits, as QEMU would: an error
// means that QEMU does not open the image.
func parseBitmaps(b []byte) (map[string]bitmapState, []string, error) {
	m, err := OpenImage(memory(b), ImageOptions{CacheBytes: 1})
	if err != nil {
		return nil, nil, err
	}
	if !m.Header().BitmapsValid() {
		return nil, nil, nil
	}
	list, err := m.Bitmaps()
	if err != nil {
		return nil, nil, err
	}
	states, names := map[string]bitmapState{}, []string(nil)
	for _, x := range list {
		table, err := m.BitmapTable(x)
		if err != nil {
			return nil, nil, err
		}
		var bits []byte
		for _, e := range table {
			chunk := make([]byte, m.Header().ClusterBytes())
			switch e {
			case BitmapAllClean:
			case BitmapAllDirty:
				for i := range chunk {
					chunk[i] = 0xff
				}
			default:
				copy(chunk, b[e:])
			}
			bits = append(bits, chunk...)
		}
		states[x.Name] = bitmapState{x.Enabled, x.GranularityBytes, string(bits)}
		names = append(names, x.Name)
	}
	return states, names, nil
}

// empty tells whether no bit is set.
func (s bitmapState) empty() bool { return strings.Trim(s.bits, "\x00") == "" }

// proof looks at the state of an image after a crash.
type proof func(after map[string]bitmapState, names []string) error

// proveCrashes makes an edit on an image, and crashes it everywhere: QEMU must
// open what is left, `qemu-img check` must find at most leaks, and the bitmaps
// must be as the proof wants them. Every state is judged by our own parser and
// checker, a sample also by QEMU.
func proveCrashes(t *testing.T, before []byte, big bool, edit func(File) error, p proof) {
	t.Helper()
	r := sim.NewRecordingFile(before)
	if err := edit(r); err != nil {
		t.Fatal(err)
	}
	o := sim.CrashOptions{TornBytes: 600, Subsets: testtool.Count(2, 14), Seed: 1}
	limit := testtool.Count(90, 6000)
	if big {
		o, limit = sim.CrashOptions{TornBytes: 32, Subsets: testtool.Count(1, 4), Seed: 1}, testtool.Count(12, 100)
	}
	crashes := sample(slices.Collect(r.Crashes(o)), limit)
	for _, c := range crashes {
		if err := judge(r.After(c), p); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, opsText(r.Ops()))
		}
	}
	random := rand.New(rand.NewPCG(8, 8))
	checks, writes := testtool.Count(4, 25), testtool.Count(1, 5)
	for i := range checks {
		c := crashes[random.IntN(len(crashes))]
		judgeByQEMU(t, c, r.After(c), i < writes)
	}
	c := sim.Crash{Done: len(r.Ops())}
	judgeByQEMU(t, c, r.After(c), true)
	t.Logf("%d operations, %d states, %d of them also by QEMU", len(r.Ops()), len(crashes), checks+1)
}

// sample returns n of the crashes in random order. Those between two writes come
// first: few states are unlike the others, and those are among them.
func sample(crashes []sim.Crash, n int) []sim.Crash {
	random := rand.New(rand.NewPCG(7, 7))
	picked := slices.Clone(crashes)
	random.Shuffle(len(picked), func(i, j int) { picked[i], picked[j] = picked[j], picked[i] })
	slices.SortStableFunc(picked, func(a, b sim.Crash) int { return min(a.Torn, 1) - min(b.Torn, 1) })
	return picked[:min(n, len(picked))]
}

func opsText(ops []sim.Op) string {
	var b strings.Builder
	for i, op := range ops {
		if op.Sync {
			fmt.Fprintf(&b, "%d sync\n", i)
			continue
		}
		fmt.Fprintf(&b, "%d write %d bytes at %#x\n", i, len(op.Data), op.Offset)
	}
	return b.String()
}

func judge(b []byte, p proof) error {
	states, names, err := parseBitmaps(b)
	if err != nil {
		return fmt.Errorf("QEMU would not open it: %w", err)
	}
	_, wrong, err := checkImage(b)
	if err != nil || wrong > 0 {
		return fmt.Errorf("%d clusters with too small a refcount, %v", wrong, err)
	}
	return p(states, names)
}

// judgeByQEMU has QEMU check the image, and compares what it finds with our own
// checker. With write, QEMU also opens it for writing, and checks it again.
func judgeByQEMU(t *testing.T, c sim.Crash, b []byte, write bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "crashed.qcow2")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	out, code := testtool.Try(t, "qemu-img", "check", path)
	leaks, wrong, err := checkImage(b)
	if want := map[bool]int{true: 3, false: 0}[leaks > 0]; code != want || wrong > 0 || err != nil {
		t.Fatalf("%v: qemu-img check exits with %d, our checker says %d leaks, %d errors, %v\n%s", c, code, leaks, wrong, err, out)
	}
	if !write {
		return
	}
	if out, code := testtool.Try(t, "qemu-io", "-c", "write -P 7 1M 192k", "-c", "read -P 7 1M 192k", path); code != 0 {
		t.Fatalf("%v: QEMU does not write to it\n%s", c, out)
	}
	if out, code := testtool.Try(t, "qemu-img", "check", path); code != 0 && code != 3 {
		t.Fatalf("%v: after a write by QEMU, qemu-img check exits with %d\n%s", c, code, out)
	}
}
