package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// timed runs qbackup under time(1) and gives its result, its peak memory in bytes and how long it took.
func (w *world) timed(args ...string) (r result, peakBytes int64, took time.Duration) {
	w.t.Helper()
	report := w.path("time.txt")
	c := exec.Command(testtool.Need(w.t, "time"), append([]string{"-v", "-o", report, program}, args...)...)
	c.Env, c.Dir = w.env, w.dir
	started := time.Now()
	r = finish(w.t, c)
	took = time.Since(started)
	text, err := os.ReadFile(report)
	if err != nil {
		w.t.Fatal(err)
	}
	m := regexp.MustCompile(`Maximum resident set size \(kbytes\): (\d+)`).FindSubmatch(text)
	if m == nil {
		w.t.Fatalf("time says:\n%s", text)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	return r, kib << 10, took
}

const memoryLimit = 256 << 20

func TestSixteenTebibytesWithAThousandDirtyClustersFitIntoMemory(t *testing.T) {
	w := newWorld(t)
	image := w.path("huge.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "16T")
	random := rand.New(rand.NewPCG(16, 16))
	for range testtool.Count(2, 5) {
		args := []string{"-f", "qcow2"}
		for range 1000 {
			args = append(args, "-c", fmt.Sprintf("write -P %d %d 64k", random.IntN(255)+1, random.Int64N(16<<40>>16)<<16))
		}
		testtool.Run(t, "qemu-io", append(args, image)...)
		r, peak, took := w.timed("backup", image)
		if r.code != 0 {
			t.Fatalf("exit %d: %s", r.code, r.stderr)
		}
		t.Logf("%v, %d MiB", took.Round(time.Millisecond), peak>>20)
		if peak > memoryLimit {
			t.Errorf("%d MiB of memory", peak>>20)
		}
		// The bar is 3 s on a machine that has nothing else to do; a busy one gets more.
		if limit := time.Duration(testtool.Count(10, 3)) * time.Second; took > limit {
			t.Errorf("the backup took %v, more than %v", took, limit)
		}
	}
	w.clean(image)
}

func TestMemoryIsBoundedForADiskFullOfData(t *testing.T) {
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "8G")
	noise := w.path("noise")
	testtool.Run(t, "dd", "if=/dev/urandom", "of="+noise, "bs=1M", "count=256", "status=none")
	args := []string{"-f", "qcow2"}
	for i := range testtool.Count(4, 16) {
		args = append(args, "-c", fmt.Sprintf("write -s %s %d 256M", noise, i*256<<20))
	}
	testtool.Run(t, "qemu-io", append(args, image)...)
	for _, step := range [][]string{
		{"backup", image},
		{"restore", "--machine", "vm", "--to", w.path("a.raw")},
		{"restore", "--machine", "vm", "--to", w.path("a.qcow2"), "--format", "qcow2"},
		{"verify", "--data"},
		{"backup", "--rescan", image},
	} {
		r, peak, took := w.timed(step...)
		if r.code != 0 {
			t.Fatalf("%v: exit %d: %s", step, r.code, r.stderr)
		}
		t.Logf("%s: %v, %d MiB", step[0], took.Round(time.Millisecond), peak>>20)
		if peak > memoryLimit {
			t.Errorf("%v: %d MiB of memory", step, peak>>20)
		}
	}
}

func TestTheDemoWorksWithNothingInstalled(t *testing.T) {
	c := exec.Command(program, "demo")
	dir := t.TempDir()
	c.Env = []string{"PATH=/nonexistent", "HOME=" + dir, "TMPDIR=" + dir}
	r := finish(t, c)
	if r.code != 0 {
		t.Fatalf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("the demo leaves %v", left)
	}
}
