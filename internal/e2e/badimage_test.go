package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// patch overwrites bytes of a file.
func patch(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func peek(t *testing.T, path string, off int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

// bitmapEntry finds the directory entry of the image's only bitmap.
func bitmapEntry(t *testing.T, path string) int64 {
	t.Helper()
	// Header extensions start behind the header; the one of type 0x23852875 holds the directory's offset at byte 16.
	for off := int64(binary.BigEndian.Uint32(peek(t, path, 100, 4))); ; {
		e := peek(t, path, off, 8)
		kind, n := binary.BigEndian.Uint32(e), int64(binary.BigEndian.Uint32(e[4:]))
		switch kind {
		case 0x23852875:
			return int64(binary.BigEndian.Uint64(peek(t, path, off+8+16, 8)))
		case 0:
			t.Fatal("no bitmaps extension")
		}
		off += 8 + (n+7)&^7
	}
}

// be is n as big-endian bytes.
func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// backedUp is a world with one image that was backed up, written again, and has dirty bits.
func backedUp(t *testing.T) (*world, string) {
	t.Helper()
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
	newChurn(image, 64<<20, 65536, 91).write(t, 20)
	w.backup(image)
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 64k", image)
	return w, image
}

// nothingLost demands that the point made before still restores and no other appeared.
func (w *world) nothingLost(points []string) {
	w.t.Helper()
	if now := w.points("vm"); len(now) != len(points) {
		w.t.Errorf("points became %v, were %v", now, points)
	}
	to := w.path("still.raw")
	w.ok("restore", "--machine", "vm", "--to", to, "--force")
}

func TestAnImageThatCannotBeTrustedIsRefusedAndNothingIsLost(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(t *testing.T, image string)
		words []string
	}{
		{"not a qcow2", func(t *testing.T, image string) { patch(t, image, 0, []byte("RAW!")) }, []string{"qcow2", "raw:"}},
		{"empty file", func(t *testing.T, image string) { truncate(t, image, 0) }, []string{"qcow2"}},
		{"header cut off", func(t *testing.T, image string) { truncate(t, image, 60) }, []string{"header"}},
		{"truncated in the middle of its data", func(t *testing.T, image string) { truncate(t, image, 512<<10) }, []string{"end within the file"}},
		{"corrupt bit", func(t *testing.T, image string) { patch(t, image, 79, []byte{2}) }, []string{"corrupt", "qemu-img check"}},
		{"dirty bit", func(t *testing.T, image string) { patch(t, image, 79, []byte{1}) }, []string{"dirty", "qemu-img check"}},
		{"unknown incompatible feature", func(t *testing.T, image string) { patch(t, image, 78, []byte{0x80}) }, []string{"feature"}},
		{"encrypted", func(t *testing.T, image string) { patch(t, image, 32, be32(1)) }, []string{"encrypt"}},
		{"bitmap table at offset 0", func(t *testing.T, image string) { patch(t, image, bitmapEntry(t, image), be64(0)) }, []string{"bitmap"}},
		{"bitmap table of size 0", func(t *testing.T, image string) { patch(t, image, bitmapEntry(t, image)+8, be32(0)) }, []string{"bitmap"}},
		{"bitmap entry beyond the end of the file", func(t *testing.T, image string) {
			table := int64(binary.BigEndian.Uint64(peek(t, image, bitmapEntry(t, image), 8)))
			patch(t, image, table, be64(1<<40))
		}, []string{"bitmap", "end within the file"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w, image := backedUp(t)
			points := w.points("vm")
			c.spoil(t, image)
			before, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			w.fails(20, append(c.words, image), "backup", image)
			after, err := os.ReadFile(image)
			if err != nil || string(after) != string(before) {
				t.Errorf("the image was written (%v)", err)
			}
			w.nothingLost(points)
		})
	}
}

func truncate(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

func TestABitmapThatCannotBeTrustedCostsARescanWithItsReason(t *testing.T) {
	cases := []struct {
		name   string
		spoil  func(t *testing.T, image string)
		reason string
	}{
		{"in use after a crash", func(t *testing.T, image string) {
			at := bitmapEntry(t, image) + 12
			patch(t, image, at, be32(binary.BigEndian.Uint32(peek(t, image, at, 4))|1))
		}, "in use"},
		{"autoclear bit unset", func(t *testing.T, image string) { patch(t, image, 95, []byte{0}) }, "autoclear"},
		{"removed by somebody", func(t *testing.T, image string) {
			name := string(peek(t, image, bitmapEntry(t, image)+24, 66))
			testtool.Run(t, "qemu-img", "bitmap", "--remove", image, name)
		}, "no bitmap"},
		{"image replaced by another", func(t *testing.T, image string) {
			fresh := filepath.Join(filepath.Dir(image), "fresh.qcow2")
			testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", fresh, "64M")
			testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 9 8M 8M", fresh)
			if err := os.Rename(fresh, image); err != nil {
				t.Fatal(err)
			}
		}, "no bitmap"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w, image := backedUp(t)
			c.spoil(t, image)
			truth := w.rawCopy(image, "truth.raw")
			s := w.backup(image)
			if d := s.Disks[0]; d.Mode != "rescan" || !strings.Contains(d.Reason, c.reason) {
				t.Fatalf("mode %q, reason %q; want a rescan because of %q", d.Mode, d.Reason, c.reason)
			}
			w.restoresTo("vm", s.Point, truth)
			testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 2 3M 64k", image)
			if d := w.backup(image).Disks[0]; d.Mode != "incremental" {
				t.Fatalf("the run after says %q: %q", d.Mode, d.Reason)
			}
			w.ok("verify", "--data")
		})
	}
}

func TestAnImageOpenInARunningQEMUIsRefusedBeforeAnythingIsUploaded(t *testing.T) {
	testtool.Need(t, "qemu-storage-daemon")
	w, image := backedUp(t)
	points := w.points("vm")
	before := filesBelow(t, w.repo)
	pidfile := w.path("qsd.pid")
	vm := exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=f0,filename="+image,
		"--blockdev", "driver=qcow2,node-name=d0,file=f0",
		"--nbd-server", "addr.type=unix,addr.path="+w.path("nbd.sock"),
		"--export", "type=nbd,id=guest,node-name=d0,name=guest,writable=on",
		"--pidfile", pidfile)
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Process.Signal(syscall.SIGTERM); _ = vm.Wait() }()
	waitFor(t, pidfile)
	w.fails(20, []string{image, fmt.Sprint(vm.Process.Pid)}, "backup", image)
	if after := filesBelow(t, w.repo); after != before {
		t.Errorf("the repository grew from %d to %d files", before, after)
	}
	w.nothingLost(points)
}

func waitFor(t *testing.T, path string) {
	t.Helper()
	for range 200 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("%s did not appear", path)
}

func filesBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAnImageOnAReadOnlyFileSystemIsRefused(t *testing.T) {
	w, image := backedUp(t)
	points := w.points("vm")
	mount := w.path("readonly")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", filepath.Dir(image), mount).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", mount).Run()
	if out, err := exec.Command("mount", "-o", "remount,bind,ro", mount).CombinedOutput(); err != nil {
		t.Fatalf("remount: %v: %s", err, out)
	}
	w.fails(20, []string{"read-only"}, "backup", filepath.Join(mount, "vm.qcow2"))
	w.nothingLost(points)
}

func TestForeignFilesAreOpenedOnlyWhereTheCallerAllows(t *testing.T) {
	w := newWorld(t)
	secret := w.path("secret")
	if err := os.WriteFile(secret, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image, "1M")
	w.fails(20, []string{"--allow-dir", secret}, "backup", image)
	w.fails(20, []string{"--allow-dir", secret}, "backup", "--allow-dir", w.path("repository"), image)
	w.backup("--allow-dir", w.dir, image)
}
