package qcow2

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// openAny is an Opener that follows every name.
type openAny struct{ opened []Reference }

func (o *openAny) OpenLayer(r Reference) (File, string, error) {
	o.opened = append(o.opened, r)
	f, err := os.Open(r.Path())
	if err != nil {
		return nil, "", err
	}
	return NewOSFile(f), r.Path(), nil
}

func openTestDisk(t testing.TB, path string, o DiskOptions) *Disk {
	t.Helper()
	if o.Opener == nil {
		o.Opener = &openAny{}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d, err := OpenDisk(NewOSFile(f), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// qemuIO runs commands of qemu-io on an image, in one process. QEMU refuses to
// write a compressed cluster where data is allocated already; that is no matter
// here.
func qemuIO(t testing.TB, format, path string, commands []string) {
	t.Helper()
	args := []string{"-f", format, "-d", "unmap", "-t", "unsafe"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, _ := testtool.Try(t, "qemu-io", append(args, path)...)
	if rest := strings.TrimSpace(strings.ReplaceAll(out, "write failed: Input/output error", "")); rest != "" {
		t.Fatalf("qemu-io: %s", rest)
	}
}

// play lets a guest work on an image. Compressed clusters come first, in a
// process of their own and each at most once: QEMU 7.2 packs several into one
// cluster of the file, and goes on packing there after that cluster was freed
// and given to something else.
func play(t testing.TB, r *rand.Rand, format, path string, count int, size, clusterBytes int64, compress bool) {
	t.Helper()
	if clusters := int(size / clusterBytes); compress && clusters > 0 {
		var commands []string
		for _, i := range r.Perm(clusters)[:min(count/4, clusters)] {
			commands = append(commands, fmt.Sprintf("write -q -c -P %d %d %d", 1+r.IntN(255), int64(i)*clusterBytes, clusterBytes))
		}
		qemuIO(t, format, path, commands)
	}
	qemuIO(t, format, path, guestWork(r, count, size, clusterBytes))
}

// guestWork makes up what a guest may do with a disk: writes, zeroes and
// discards. Offsets crowd together so that later commands change what earlier
// ones wrote.
func guestWork(r *rand.Rand, count int, size, clusterBytes int64) []string {
	var commands []string
	for range count {
		unit := max([]int64{512, 4096, clusterBytes, clusterBytes / 2}[r.IntN(4)], 512)
		n := min(unit*(1+r.Int64N(6)), 1<<20, size)
		off := r.Int64N(size-n+1) / unit * unit
		if r.IntN(3) == 0 {
			off = min(off, size/8/unit*unit)
		}
		switch k := r.IntN(8); {
		case k < 5:
			commands = append(commands, fmt.Sprintf("write -q -P %d %d %d", 1+r.IntN(255), off, n))
		case k < 6:
			commands = append(commands, fmt.Sprintf("write -q -z %d %d", off, n))
		case k < 7:
			commands = append(commands, fmt.Sprintf("write -q -z -u %d %d", off, n))
		default:
			commands = append(commands, fmt.Sprintf("discard -q %d %d", off, n))
		}
	}
	return commands
}

func TestImagesReadAsQEMUReadsThem(t *testing.T) {
	for _, c := range []struct {
		name     string
		size     int64
		cluster  int64
		compress bool
		options  []string
	}{
		{"512 B", 4<<20 + 1536, 512, true, nil},
		{"4 KiB", 6<<20 + 512, 4 << 10, true, nil},
		{"64 KiB", 17<<20 + 1536, 64 << 10, true, nil},
		{"2 MiB", 24<<20 + 512, 2 << 20, true, nil},
		{"version 2", 10 << 20, 64 << 10, true, []string{"compat=0.10"}},
		{"version 2, 512 B", 2 << 20, 512, true, []string{"compat=0.10"}},
		{"extended L2, 16 KiB", 10<<20 + 512, 16 << 10, true, []string{"extended_l2=on"}},
		{"extended L2, 64 KiB", 20<<20 + 512, 64 << 10, true, []string{"extended_l2=on"}},
		{"extended L2, 2 MiB", 24 << 20, 2 << 20, true, []string{"extended_l2=on"}},
		{"zstd, 512 B", 2 << 20, 512, true, []string{"compression_type=zstd"}},
		{"zstd, 64 KiB", 10 << 20, 64 << 10, true, []string{"compression_type=zstd"}},
		{"zstd, 2 MiB", 20 << 20, 2 << 20, true, []string{"compression_type=zstd"}},
		{"1-bit refcounts", 10 << 20, 64 << 10, true, []string{"refcount_bits=1"}},
		{"64-bit refcounts", 10 << 20, 64 << 10, true, []string{"refcount_bits=64"}},
		{"preallocated", 10 << 20, 64 << 10, false, []string{"preallocation=falloc"}},
		{"empty", 0, 64 << 10, false, nil},
		{"one sector", 512, 64 << 10, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			options := append([]string{fmt.Sprintf("cluster_size=%d", c.cluster)}, c.options...)
			path := createImage(t, fmt.Sprint(c.size), options...)
			if c.size < c.cluster {
				checkAgainstQEMU(t, "qcow2", path)
				return
			}
			r := rand.New(rand.NewPCG(1, uint64(c.cluster)))
			for range testtool.Count(1, 10) {
				count := 50
				if c.cluster == 2<<20 {
					count = 20 // each costs QEMU megabytes
				}
				play(t, r, "qcow2", path, count, c.size, c.cluster, c.compress)
				checkAgainstQEMU(t, "qcow2", path)
			}
		})
	}
}

func TestSnapshotsDoNotDisturbTheActiveState(t *testing.T) {
	path := createImage(t, "20M", "cluster_size=64k")
	r := rand.New(rand.NewPCG(2, 2))
	for _, name := range []string{"first", "second", "a longer name"} {
		play(t, r, "qcow2", path, 40, 20<<20, 64<<10, true)
		testtool.Run(t, "qemu-img", "snapshot", "-c", name, path)
	}
	play(t, r, "qcow2", path, 40, 20<<20, 64<<10, true)
	checkAgainstQEMU(t, "qcow2", path)
	m := openTestDisk(t, path, DiskOptions{}).Image()
	if list := m.Snapshots(); len(list) != 3 || list[2].Name != "a longer name" || list[1].ID != "2" || list[0].DiskBytes != 20<<20 {
		t.Fatalf("%+v", list)
	}
	if off, end := m.SnapshotTable(); off != m.Header().SnapshotsOffset || end <= off || end > off+1<<16 {
		t.Fatalf("snapshot table [%d,%d)", off, end)
	}
}

func TestChainsReadAsQEMUReadsThem(t *testing.T) {
	for _, c := range []struct {
		name              string
		base, mid, top    int64
		format            string
		clusters, topOpts string
	}{
		{"equal", 20 << 20, 20 << 20, 20 << 20, "qcow2", "64k", "cluster_size=64k"},
		{"shorter below", 5<<20 + 512, 9<<20 + 1024, 20 << 20, "qcow2", "4k", "cluster_size=64k"},
		{"longer below", 20 << 20, 18 << 20, 7<<20 + 512, "qcow2", "64k", "cluster_size=4k"},
		{"raw base", 12<<20 + 512, 14 << 20, 20 << 20, "raw", "64k", "cluster_size=64k"},
		{"extended L2 on top", 20 << 20, 20 << 20, 20 << 20, "qcow2", "64k", "cluster_size=64k,extended_l2=on"},
		{"version 2 on top", 20 << 20, 20 << 20, 22 << 20, "raw", "512", "compat=0.10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			base, mid, top := filepath.Join(dir, "base"), filepath.Join(dir, "mid"), filepath.Join(dir, "top")
			testtool.Run(t, "qemu-img", "create", "-q", "-f", c.format, base, fmt.Sprint(c.base))
			r := rand.New(rand.NewPCG(3, 3))
			play(t, r, c.format, base, 60, c.base, 64<<10, false)
			// The name is relative to the folder of the image.
			testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size="+c.clusters, "-b", "base", "-F", c.format, mid, fmt.Sprint(c.mid))
			play(t, r, "qcow2", mid, 40, c.mid, 64<<10, false)
			testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", c.topOpts, "-b", mid, "-F", "qcow2", top, fmt.Sprint(c.top))
			play(t, r, "qcow2", top, 40, c.top, 64<<10, true)
			checkAgainstQEMU(t, "qcow2", top)

			opener := &openAny{}
			layers := openTestDisk(t, top, DiskOptions{Opener: opener}).Layers()
			if len(layers) != 3 || layers[0].Role != Top || layers[2].Role != Backing || layers[2].Path != base || layers[2].Format != c.format {
				t.Fatalf("%+v", layers)
			}
			if want := (Reference{Backing, "base", c.format, mid}); opener.opened[1] != want {
				t.Fatalf("opened %+v, want %+v", opener.opened[1], want)
			}
		})
	}
}

func TestExternalDataFilesReadAsQEMUReadsThem(t *testing.T) {
	for _, c := range []struct{ name, options string }{
		{"mapped", "data_file_raw=off"},
		{"raw", "data_file_raw=on"},
		{"raw with extended L2", "data_file_raw=on,extended_l2=on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data.raw")
			path := createImage(t, "10M", "data_file="+data, c.options)
			r := rand.New(rand.NewPCG(4, 4))
			play(t, r, "qcow2", path, 60, 10<<20, 64<<10, false)
			checkAgainstQEMU(t, "qcow2", path)
			layers := openTestDisk(t, path, DiskOptions{}).Layers()
			if len(layers) != 2 || layers[1].Role != DataFile || layers[1].Path != data {
				t.Fatalf("%+v", layers)
			}
		})
	}
}

func TestRawDisksAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", path, "10M")
	play(t, rand.New(rand.NewPCG(5, 5)), "raw", path, 20, 10<<20, 64<<10, false)
	checkAgainstQEMU(t, "raw", path)
	// A guest can write a qcow2 header into its raw disk; it stays data.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	header := craftHeader(3, 16, 1<<40)
	if _, err := f.WriteAt(header, 0); err != nil {
		t.Fatal(err)
	}
	checkAgainstQEMU(t, "raw", path)
	// QEMU rounds a raw file up to whole sectors.
	if err := f.Truncate(10<<20 - 100); err != nil {
		t.Fatal(err)
	}
	checkAgainstQEMU(t, "raw", path)
}

func TestCompressedImagesOfMixedDataAreRead(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "source.raw")
	r := rand.New(rand.NewPCG(6, 6))
	source := make([]byte, 2<<20+512)
	for at := 0; at < len(source); at += 50_000 {
		part := source[at:min(at+50_000, len(source))]
		letters := []int{1, 4, 40, 256}[r.IntN(4)]
		for i := range part {
			part[i] = byte(r.IntN(letters))
		}
	}
	if err := os.WriteFile(raw, source, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{"cluster_size=512", "cluster_size=64k", "compression_type=zstd", "compression_type=zstd,cluster_size=2M", "extended_l2=on"} {
		path := filepath.Join(dir, options)
		testtool.Run(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
		checkAgainstQEMU(t, "qcow2", path)
	}
}
