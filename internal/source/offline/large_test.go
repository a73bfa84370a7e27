package offline

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/testtool"
)

// largeImage makes an image of 16 TiB, empty but for scattered clusters that were
// written since bitmap 1 began.
func largeImage(t testing.TB, clusters int) string {
	t.Helper()
	path := newImage(t, "16T")
	addBitmap(t, path, bitmapName(t, 1, 0))
	step := int64(16<<40) / int64(clusters) >> 16 << 16
	var commands strings.Builder
	for i := range clusters {
		fmt.Fprintf(&commands, "write -P %d %d 64k\n", i%255+1, int64(i)*step)
	}
	args := []string{"-f", "qcow2"}
	for line := range strings.Lines(commands.String()) {
		args = append(args, "-c", strings.TrimSpace(line))
	}
	testtool.Run(t, "qemu-io", append(args, path)...)
	return path
}

func TestALargeDiskWithFewDirtyClustersIsDoneQuickly(t *testing.T) {
	clusters := testtool.Count(100, 1000)
	path := largeImage(t, clusters)
	begin := time.Now()
	c := cutOf(t, one(path, Options{}), 2, 1)
	all, err := extent.Collect(c.Disks()[0].Extents(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	total, err := extent.Total(extent.Of(all...))
	if err != nil || total != int64(clusters)<<16 || c.Disks()[0].DirtyBytes() != total || len(all) != clusters {
		t.Errorf("%d extents of %d bytes, %v", len(all), total, err)
	}
	listed := time.Since(begin)
	finish(t, c)
	took := time.Since(begin)
	t.Logf("%d clusters: listed after %v, reset after %v", clusters, listed, took)
	// A machine that is busy with other things is slow; one that looks at 16 TiB
	// of tables is slower by far.
	if took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func BenchmarkExtentsOfALargeDisk(b *testing.B) {
	c := cutOf(b, one(largeImage(b, 1000), Options{}), 2, 1)
	for b.Loop() {
		if n, err := extent.Total(c.Disks()[0].Extents(b.Context())); err != nil || n != 1000<<16 {
			b.Fatal(n, err)
		}
	}
}
