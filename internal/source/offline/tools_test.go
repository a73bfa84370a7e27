package offline

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testFamily = ident.FamilyID{0xfa, 0x31, 0x17, 0x00}

// testRun makes run ids that ascend with n.
func testRun(t testing.TB, n int) ident.RunID {
	t.Helper()
	run, err := ident.NewRunID(time.UnixMilli(1700000000000+int64(n)), rand.NewChaCha8([32]byte{byte(n)}))
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func bitmapName(t testing.TB, stamp, prev int) string {
	n := ident.BitmapName{Family: testFamily, Stamp: testRun(t, stamp)}
	if prev > 0 {
		n.Prev = testRun(t, prev)
	}
	return n.String()
}

// templates are images that tests begin with, made once by QEMU's own tools.
var templates sync.Map

// copyOf gives a test its own copy of the image that prepare makes.
func copyOf(t testing.TB, name string, prepare func(path string)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if b, ok := templates.Load(name); ok {
		if err := os.WriteFile(path, b.([]byte), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	prepare(path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	templates.Store(name, b)
	return path
}

// newImage makes an empty image.
func newImage(t testing.TB, size string, options ...string) string {
	t.Helper()
	return copyOf(t, fmt.Sprint(size, options), func(path string) {
		testtool.Run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, options...), path, size)...)
	})
}

// withBitmap makes an image that has bitmap 1 of our family with one dirty bit.
func withBitmap(t testing.TB) string {
	t.Helper()
	return copyOf(t, "with bitmap", func(path string) {
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "8M")
		addBitmap(t, path, bitmapName(t, 1, 0))
		qemuIO(t, path, "write -P 2 2M 64k")
	})
}

// twoBitmaps makes an image in which bitmap 1 is frozen and bitmap 2 records,
// with one dirty bit each.
func twoBitmaps(t testing.TB) string {
	t.Helper()
	return copyOf(t, "two bitmaps", func(path string) {
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "8M")
		addBitmap(t, path, bitmapName(t, 1, 0))
		qemuIO(t, path, "write -P 1 1M 64k")
		testtool.Run(t, "qemu-img", "bitmap", "--disable", path, bitmapName(t, 1, 0))
		addBitmap(t, path, bitmapName(t, 2, 1))
		qemuIO(t, path, "write -P 2 2M 64k")
	})
}

func addBitmap(t testing.TB, path, name string, more ...string) {
	t.Helper()
	testtool.Run(t, "qemu-img", append(append([]string{"bitmap", "--add"}, more...), path, name)...)
}

// qemuIO runs commands as a guest would: it opens the image, and closes it.
func qemuIO(t testing.TB, path string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := testtool.Run(t, "qemu-io", append(args, path)...)
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Fatalf("qemu-io: %s", out)
	}
}

// holding is a qemu-io that has an image open until it is told to let go.
type holding struct {
	pid   int
	stdin io.WriteCloser
	done  chan error
}

// hold opens an image with qemu-io and comes back when the locks are there.
func hold(t testing.TB, path string, flags ...string) *holding {
	t.Helper()
	cmd := exec.Command(testtool.Need(t, "qemu-io"), append(append([]string{"-f", "qcow2"}, flags...), path)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &holding{pid: cmd.Process.Pid, stdin: stdin, done: make(chan error, 1)}
	t.Cleanup(func() { h.release(t) })
	fmt.Fprintln(stdin, "length")
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "MiB") {
			go func() {
				_, _ = io.Copy(io.Discard, stdout)
				h.done <- cmd.Wait()
			}()
			return h
		}
	}
	_ = cmd.Wait()
	h.stdin = nil
	t.Fatalf("qemu-io did not open %s", path)
	return nil
}

func (h *holding) release(t testing.TB) {
	t.Helper()
	if h.stdin == nil {
		return
	}
	_ = h.stdin.Close()
	h.stdin = nil
	select {
	case <-h.done:
	case <-time.After(10 * time.Second):
		t.Errorf("qemu-io %d does not end", h.pid)
	}
}

// canOpen tells whether QEMU opens the image, with the flags of qemu-io.
func canOpen(t testing.TB, path string, flags ...string) bool {
	t.Helper()
	out, code := testtool.Try(t, "qemu-io", append(append([]string{"-f", "qcow2", "-c", "length"}, flags...), path)...)
	if code != 0 && !strings.Contains(out, "lock") {
		t.Fatalf("qemu-io fails without a word of locks: %s", out)
	}
	return code == 0
}

// checkClean wants qemu-img check to find nothing at all.
func checkClean(t testing.TB, path string) {
	t.Helper()
	if out, code := testtool.Try(t, "qemu-img", "check", path); code != 0 {
		t.Errorf("qemu-img check: exit %d\n%s", code, out)
	}
}
