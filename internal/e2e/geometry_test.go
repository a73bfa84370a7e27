package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// geometry is one way to make an image.
type geometry struct {
	name       string
	sizeBytes  int64
	cluster    int64
	options    string // of qemu-img create -o
	compressed bool
	backing    bool
	dataFile   bool
}

var geometries = []geometry{
	{name: "default", sizeBytes: 256 << 20, cluster: 65536, compressed: true},
	{name: "clusters of 2 MiB", sizeBytes: 1 << 30, cluster: 2 << 20, options: "cluster_size=2M", compressed: true},
	{name: "clusters of 512 bytes", sizeBytes: 24<<20 + 512, cluster: 512, options: "cluster_size=512", compressed: true},
	{name: "extended L2", sizeBytes: 200 << 20, cluster: 65536, options: "extended_l2=on", compressed: true},
	{name: "zstd", sizeBytes: 256 << 20, cluster: 65536, options: "compression_type=zstd", compressed: true},
	{name: "1-bit refcounts", sizeBytes: 256 << 20, cluster: 65536, options: "refcount_bits=1"},
	{name: "backing file", sizeBytes: 256 << 20, cluster: 65536, compressed: true, backing: true},
	{name: "data file", sizeBytes: 256 << 20, cluster: 65536, dataFile: true},
	{name: "small clusters and a tail", sizeBytes: 100<<20 + 7*512, cluster: 4096, options: "cluster_size=4k", compressed: true},
}

// create makes the image and, where it has one, the file below it.
func (g geometry) create(t *testing.T, w *world) (image string, args []string) {
	t.Helper()
	image = w.path("disk.qcow2")
	args = []string{"create", "-q", "-f", "qcow2"}
	options := g.options
	if g.dataFile {
		options = "data_file=" + w.path("disk.data")
	}
	if options != "" {
		args = append(args, "-o", options)
	}
	var flags []string
	if g.backing {
		// Shorter than the overlay: what lies past its end is zero.
		base := w.path("base.qcow2")
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "200M")
		newChurn(base, 200<<20, 65536, 99).write(t, 40)
		args = append(args, "-b", base, "-F", "qcow2")
	}
	if g.backing || g.dataFile {
		flags = []string{"--allow-dir", w.dir}
	}
	testtool.Run(t, "qemu-img", append(args, image, fmt.Sprint(g.sizeBytes))...)
	return image, flags
}

func TestEveryPointIsRightForEveryGeometry(t *testing.T) {
	for i, g := range geometries {
		t.Run(g.name, func(t *testing.T) {
			w := newWorld(t)
			image, flags := g.create(t, w)
			c := newChurn(image, g.sizeBytes, g.cluster, uint64(i))
			if g.compressed {
				c.compress(t, 30)
			}
			c.write(t, 60)
			rounds := testtool.Count(4, 10)
			if i == 0 {
				rounds = 10
			}
			var points []string
			for round := range rounds + 1 {
				if round > 0 {
					c.write(t, 25)
				}
				keep := w.path(fmt.Sprintf("copy%d.raw", round))
				testtool.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, keep)
				s := w.backup(append(flags, "--machine", "vm", image)...)
				checkRound(t, w, s, round)
				points = append(points, s.Point)
				w.clean(image)
			}
			for round, point := range points {
				keep := w.path(fmt.Sprintf("copy%d.raw", round))
				raw, qcow := w.path("restored.raw"), w.path("restored.qcow2")
				w.ok("restore", "--machine", "vm", "--point", point, "--to", raw)
				w.sameContent("raw", keep, "raw", raw, fmt.Sprintf("round %d, raw", round))
				w.ok("restore", "--machine", "vm", "--point", point, "--to", qcow, "--format", "qcow2")
				w.sameContent("raw", keep, "qcow2", qcow, fmt.Sprintf("round %d, qcow2", round))
				w.clean(qcow)
				os.Remove(raw)
				os.Remove(qcow)
			}
			w.ok("verify", "--data")
		})
	}
}

// checkRound checks what the summary says of a run.
func checkRound(t *testing.T, w *world, s summary, round int) {
	t.Helper()
	if len(s.Disks) != 1 {
		t.Fatalf("round %d: %d disks in the summary", round, len(s.Disks))
	}
	d := s.Disks[0]
	if round == 0 {
		if d.Mode != "full" {
			t.Fatalf("the first run says %q (%s), want full", d.Mode, d.Reason)
		}
		return
	}
	if d.Mode != "incremental" {
		t.Fatalf("round %d: mode %q (%s), want incremental", round, d.Mode, d.Reason)
	}
	if limit := d.Dirty + d.Dirty/100 + 4<<20; d.Read > limit {
		t.Fatalf("round %d: %d bytes read, %d dirty: more than 1 %% and 4 MiB above", round, d.Read, d.Dirty)
	}
}
