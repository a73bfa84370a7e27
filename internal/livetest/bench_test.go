package livetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/testtool"
)

// dirty writes to random clusters of an image that nobody has open.
func dirty(b *testing.B, image string, sizeBytes int64, clusters int, random *rand.Rand) {
	b.Helper()
	const clusterBytes = 64 << 10
	var script strings.Builder
	content := filepath.Join(b.TempDir(), "content")
	noise := make([]byte, clusterBytes)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	if err := os.WriteFile(content, noise, 0o600); err != nil {
		b.Fatal(err)
	}
	for range clusters {
		fmt.Fprintf(&script, "write -s %s %d 64k\n", content, random.Int64N(sizeBytes/clusterBytes)*clusterBytes)
	}
	commands := filepath.Join(b.TempDir(), "commands")
	if err := os.WriteFile(commands, []byte(script.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	testtool.Run(b, "sh", "-c", fmt.Sprintf("qemu-io -f qcow2 %s < %s > /dev/null", image, commands))
}

// evict takes a file out of the page cache.
func evict(b *testing.B, path string) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		b.Fatal(err)
	}
}

// A machine that stands idle and one that is off, in turns: 3,277 dirty clusters (205
// MiB) of 20 GiB. Cold: the image is not in the page cache, as with cache=none or when
// it was written hours ago. Cached: all of what is dirty is.
func BenchmarkIncrementalOfAnIdleMachine(b *testing.B) {
	const sizeBytes, clusters = 20 << 30, 3277
	for _, state := range []string{"cold", "cached"} {
		b.Run(state, func(b *testing.B) {
			random := rand.New(rand.NewPCG(61, 1))
			var off, live []float64
			h := newHost(b)
			m := &machine{h: h, name: "vm"}
			m.makeDisks([]int64{sizeBytes})
			image := m.images[0]
			h.ok("backup", "--machine", "vm", image)
			incremental := func(args ...string) float64 {
				s := h.backup(append(args, "--machine", "vm")...)
				if modes(s) != "incremental" {
					b.Fatal(modes(s))
				}
				return s.DurationSeconds
			}
			prepare := func() {
				dirty(b, image, sizeBytes, clusters, random)
				if state == "cold" {
					evict(b, image)
				}
			}
			for b.Loop() {
				prepare()
				off = append(off, incremental(image))
				prepare()
				m.start()
				live = append(live, incremental("--qmp", m.monitor()))
				m.stop()
			}
			slices.Sort(off)
			slices.Sort(live)
			b.ReportMetric(off[len(off)/2], "off-s/backup")
			b.ReportMetric(live[len(live)/2], "live-s/backup")
			b.ReportMetric(live[len(live)/2]/off[len(off)/2], "live/off")
		})
	}
}

// What a guest's writes of 64 KiB, each flushed, take while its disk of 1 GiB is read in
// full, and while it is left alone.
func BenchmarkGuestWritesDuringABackup(b *testing.B) {
	const sizeBytes = 1 << 30
	h := newHost(b)
	m := newMachine(h, "vm", sizeBytes)
	m.rewrite(0, sizeBytes, 1)
	args := []string{"backup", "--qmp", m.monitor(), "--machine", "vm", "--rescan"}
	h.ok(args...)
	random := rand.New(rand.NewPCG(62, 1))
	writeUntil := func(done func() bool) (times []float64) {
		for n := uint64(0); !done(); n++ {
			o := operation{off: random.Int64N(sizeBytes/65536) * 65536, len: 65536, seed: n}
			content := o.fill()
			began := time.Now()
			if _, err := m.files[0].WriteAt(content, o.off); err != nil {
				b.Fatal(err)
			}
			if err := m.files[0].Sync(); err != nil {
				b.Fatal(err)
			}
			times = append(times, float64(time.Since(began).Microseconds())/1000)
			time.Sleep(time.Millisecond)
		}
		slices.Sort(times)
		return times
	}
	var alone, during []float64
	for b.Loop() {
		until := time.Now().Add(3 * time.Second)
		alone = append(alone, writeUntil(func() bool { return time.Now().After(until) })...)
		run := h.command(args...)
		if err := run.Start(); err != nil {
			b.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- run.Wait() }()
		during = append(during, writeUntil(func() bool {
			select {
			case err := <-ended:
				if err != nil {
					b.Fatal(err)
				}
				return true
			default:
				return false
			}
		})...)
	}
	slices.Sort(alone)
	slices.Sort(during)
	for name, times := range map[string][]float64{"alone": alone, "backup": during} {
		b.ReportMetric(times[len(times)/2], name+"-p50-ms")
		b.ReportMetric(times[len(times)*99/100], name+"-p99-ms")
	}
}
