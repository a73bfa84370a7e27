package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestDiscardedDataIsRestoredAsZerosAndCostsNothing(t *testing.T) {
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "1G")
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 165 0 400M", "-c", "write -P 90 700M 20M", image)
	w.backup(image)
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-d", "unmap", "-c", "discard 32M 300M", image)
	truth := w.path("truth.raw")
	testtool.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, truth)
	s := w.backup(image)
	d := s.Disks[0]
	if d.Mode != "incremental" || d.Stored > 1<<20 || d.Zero != 300<<20 || d.Dirty != 300<<20 {
		t.Fatalf("300 MiB discarded: %+v", d)
	}
	to := w.path("restored.raw")
	w.ok("restore", "--machine", "vm", "--to", to)
	w.sameContent("raw", truth, "raw", to, "after the discard")
}

func TestTwoRepositoriesKeepTwoFamiliesAndBothStayIncremental(t *testing.T) {
	w := newWorld(t)
	other := w.path("other")
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
	c := newChurn(image, 64<<20, 65536, 31)
	c.write(t, 30)
	w.ok("init", "--repo", other)
	w.backup(image)
	w.backup("--repo", other, image)
	for round := range 4 {
		c.write(t, 10)
		truth := w.rawCopy(image, "truth.raw")
		for _, repository := range []string{w.repo, other} {
			if round%2 == 1 && repository == other {
				continue // it falls behind, and catches up in the next round
			}
			s := w.backup("--repo", repository, image)
			if s.Disks[0].Mode != "incremental" {
				t.Fatalf("round %d, %s: %s: %s", round, repository, s.Disks[0].Mode, s.Disks[0].Reason)
			}
			to := w.path("restored.raw")
			w.ok("restore", "--repo", repository, "--machine", "vm", "--to", to, "--force")
			w.sameContent("raw", truth, "raw", to, repository)
		}
		w.clean(image)
	}
}

// bitmapState is what QEMU itself says of a bitmap: its description, and the hash of its bits.
func bitmapState(t *testing.T, image, name string) string {
	t.Helper()
	var info struct {
		Specific struct {
			Data struct {
				Bitmaps []map[string]any `json:"bitmaps"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal([]byte(testtool.Run(t, "qemu-img", "info", "--output=json", image)), &info); err != nil {
		t.Fatal(err)
	}
	for _, b := range info.Specific.Data.Bitmaps {
		if b["name"] == name {
			delete(b, "hash")
			return fmt.Sprintf("%v %x", b, dirtyOf(t, image, name))
		}
	}
	return "absent"
}

// dirtyOf lists the dirty ranges of a bitmap as QEMU's NBD server tells them.
func dirtyOf(t *testing.T, image, name string) [32]byte {
	t.Helper()
	testtool.Need(t, "nbdinfo")
	testtool.Need(t, "qemu-nbd")
	out := testtool.Run(t, "nbdinfo", "--map=qemu:dirty-bitmap:"+name, "--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, image, "]")
	return sha256.Sum256([]byte(out))
}

func TestAForeignBitmapIsUntouched(t *testing.T) {
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "128M")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "32k", image, "theirs")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "--disable", image, "asleep")
	c := newChurn(image, 128<<20, 65536, 41)
	c.write(t, 40)
	for round := range 3 {
		theirs, asleep := bitmapState(t, image, "theirs"), bitmapState(t, image, "asleep")
		w.backup(image)
		if got := bitmapState(t, image, "theirs"); got != theirs {
			t.Fatalf("round %d: the foreign bitmap changed from %s to %s", round, theirs, got)
		}
		if got := bitmapState(t, image, "asleep"); got != asleep {
			t.Fatalf("round %d: the disabled foreign bitmap changed from %s to %s", round, asleep, got)
		}
		w.clean(image)
		c.write(t, 10)
	}
}

func TestSeveralImagesOfOneMachineAreOnePoint(t *testing.T) {
	w := newWorld(t)
	var args, images []string
	var churns []*churn
	for i, name := range []string{"root", "data"} {
		image := w.path(name + ".qcow2")
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
		c := newChurn(image, 64<<20, 65536, uint64(50+i))
		c.write(t, 30)
		churns = append(churns, c)
		images = append(images, image)
		args = append(args, name+"="+image)
	}
	for round := range 3 {
		s := w.backup(append([]string{"--machine", "pair"}, args...)...)
		if len(s.Disks) != 2 {
			t.Fatalf("round %d: %d disks", round, len(s.Disks))
		}
		for _, d := range s.Disks {
			if round > 0 && d.Mode != "incremental" {
				t.Fatalf("round %d: disk %s: %s: %s", round, d.Name, d.Mode, d.Reason)
			}
		}
		folder := w.path(fmt.Sprintf("restored%d", round))
		w.ok("restore", "--machine", "pair", "--to", folder, "--format", "qcow2")
		for i, name := range []string{"root", "data"} {
			w.sameContent("qcow2", images[i], "qcow2", folder+"/"+name+".qcow2", fmt.Sprintf("round %d", round))
			churns[i].write(t, 10)
		}
	}
}

func TestSwappedDisksAreNoticed(t *testing.T) {
	w := newWorld(t)
	a, b := w.path("a.qcow2"), w.path("b.qcow2")
	for i, image := range []string{a, b} {
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
		newChurn(image, 64<<20, 65536, uint64(60+i)).write(t, 30)
	}
	args := []string{"--machine", "pair", "one=" + a, "two=" + b}
	w.backup(args...)
	for from, to := range map[string]string{a: b + ".x", b: a + ".x"} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{a, b} {
		if err := os.Rename(to+".x", to); err != nil {
			t.Fatal(err)
		}
	}
	s := w.backup(args...)
	for _, d := range s.Disks {
		if d.Mode == "incremental" {
			t.Errorf("disk %s was swapped and says incremental", d.Name)
		}
	}
	folder := w.path("restored")
	w.ok("restore", "--machine", "pair", "--to", folder)
	w.sameContent("qcow2", a, "raw", folder+"/one.raw", "after the swap")
	w.sameContent("qcow2", b, "raw", folder+"/two.raw", "after the swap")
}

func TestARestoredQcow2GoesOnIncrementally(t *testing.T) {
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
	newChurn(image, 64<<20, 65536, 71).write(t, 30)
	w.backup(image)
	restored := w.path("restored.qcow2")
	w.ok("restore", "--machine", "vm", "--to", restored, "--format", "qcow2")
	if err := os.Rename(restored, image); err != nil {
		t.Fatal(err)
	}
	c := newChurn(image, 64<<20, 65536, 72)
	c.write(t, 5)
	truth := w.rawCopy(image, "truth.raw")
	s := w.backup(image)
	if s.Disks[0].Mode != "incremental" {
		t.Fatalf("after a restore: %s: %s", s.Disks[0].Mode, s.Disks[0].Reason)
	}
	w.restoresTo("vm", s.Point, truth)
}

func TestAnImageRestoredFromAnOldCopyGivesARightPoint(t *testing.T) {
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
	c := newChurn(image, 64<<20, 65536, 81)
	c.write(t, 30)
	w.backup(image)
	c.write(t, 5)
	old := w.path("old.qcow2")
	testtool.Run(t, "cp", image, old)
	w.backup(image)
	c.write(t, 5)
	w.backup(image)
	testtool.Run(t, "cp", old, image)
	truth := w.rawCopy(image, "truth.raw")
	r := w.run("backup", "--json", image)
	if r.code != 0 {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	if !strings.Contains(r.stderr+r.stdout, "rolled back") {
		t.Errorf("nobody is told that the image is an old one:\n%s%s", r.stdout, r.stderr)
	}
	points := w.points("vm")
	w.restoresTo("vm", points[len(points)-1], truth)
}
