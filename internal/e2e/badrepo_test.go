package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestARepositoryThatIsNotThereHasItsOwnExitCode(t *testing.T) {
	w, image := backedUp(t)
	missing := w.path("nowhere")
	for _, args := range [][]string{{"backup", image}, {"points"}, {"verify"}, {"restore", "--machine", "vm", "--to", w.path("x")}} {
		w.fails(10, []string{missing, "init"}, append([]string{"--repo", missing}, args...)...)
	}
	empty := w.path("empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	w.fails(10, []string{"init"}, "--repo", empty, "points")
	other := w.path("restic")
	if err := os.MkdirAll(filepath.Join(other, "repository"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "repository", "00000001"), []byte("something else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := w.run("--repo", other, "points")
	if r.code == 0 || r.stderr == "" {
		t.Errorf("a repository of another format: exit %d, %q", r.code, r.stderr)
	}
	w.fails(64, []string{"--repo"}, "--repo", "", "points")
	if s := w.backup(image); s.Disks[0].Mode != "incremental" {
		t.Errorf("after all that the bitmap is gone: %+v", s.Disks[0])
	}
}

func TestAFlippedBitInAnyObjectIsFoundAndNamed(t *testing.T) {
	w, image := backedUp(t)
	w.backup(image)
	var objects []string
	err := filepath.WalkDir(w.repo, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.Contains(path, "/probe/") {
			objects = append(objects, path)
		}
		return err
	})
	if err != nil || len(objects) < 8 {
		t.Fatalf("objects: %v, %v", objects, err)
	}
	for _, path := range objects {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		key := strings.TrimPrefix(path, w.repo+"/")
		for _, at := range []int{0, len(content) / 3, len(content) - 1} {
			spoiled := append([]byte(nil), content...)
			spoiled[at] ^= 0x10
			if err := os.WriteFile(path, spoiled, 0o600); err != nil {
				t.Fatal(err)
			}
			r := w.run("verify", "--data")
			if r.code == 0 || !strings.Contains(r.stdout+r.stderr, key) {
				t.Errorf("%s, byte %d flipped: verify exits %d and says\n%s%s", key, at, r.code, r.stdout, r.stderr)
			}
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.ok("verify", "--data")
}

func TestADamagedPackIsNamedWithThePointsAndRangesItTouches(t *testing.T) {
	w := newWorld(t)
	image, noise := w.path("vm.qcow2"), w.path("noise")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
	testtool.Run(t, "dd", "if=/dev/urandom", "of="+noise, "bs=1M", "count=6", "status=none")
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -s "+noise+" 10M 6M", image)
	first := w.backup(image).Point
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 64k", image)
	s := w.backup(image)
	packs, err := filepath.Glob(filepath.Join(w.repo, "data", "vm", first, "p*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("packs of the first point: %v, %v", packs, err)
	}
	content, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	patch(t, packs[0], int64(len(content)/3), []byte{content[len(content)/3] ^ 1})
	r := w.fails(21, nil, "verify", "--data")
	for _, word := range []string{filepath.Base(packs[0]), first, s.Point} {
		if !strings.Contains(r.stdout+r.stderr, word) {
			t.Errorf("verify does not name %s:\n%s%s", word, r.stdout, r.stderr)
		}
	}
	to := w.path("restored.raw")
	w.fails(21, nil, "restore", "--machine", "vm", "--point", first, "--to", to)
	if _, err := os.Stat(to); err == nil {
		t.Error("a damaged restore appears under its final name")
	}
	if err := os.Remove(packs[0]); err != nil {
		t.Fatal(err)
	}
	r = w.fails(21, nil, "verify")
	if !strings.Contains(r.stdout+r.stderr, filepath.Base(packs[0])) {
		t.Errorf("verify does not name the missing pack:\n%s%s", r.stdout, r.stderr)
	}
	// The next run stores again what is lost, without being told.
	truth := w.rawCopy(image, "truth.raw")
	s = w.backup(image)
	if d := s.Disks[0]; d.Mode != "rescan" || !strings.Contains(d.Reason, "damaged") {
		t.Errorf("the run after says %s: %s", d.Mode, d.Reason)
	}
	w.restoresTo("vm", s.Point, truth)
}

func TestAFullRepositoryLosesNothing(t *testing.T) {
	w, image := backedUp(t)
	mount := w.path("small")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", mount).Run()
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -s /bin/bash 20M 1M", image)
	w.ok("--repo", mount, "init")
	big := w.path("big.raw")
	testtool.Run(t, "dd", "if=/dev/urandom", "of="+big, "bs=1M", "count=8", "status=none")
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -s "+big+" 30M 8M", image)
	truth := w.rawCopy(image, "truth.raw")
	w.fails(1, []string{"full"}, "--repo", mount, "backup", image)
	s := w.backup(image)
	if s.Disks[0].Mode != "incremental" {
		t.Errorf("the other repository's family suffered: %+v", s.Disks[0])
	}
	w.restoresTo("vm", s.Point, truth)
	w.clean(image)
}

func TestTargetsAreNotOverwrittenAndAFullDiskIsSaid(t *testing.T) {
	w, _ := backedUp(t)
	to := w.path("target.raw")
	if err := os.WriteFile(to, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"raw", "qcow2"} {
		w.fails(1, []string{"--force", to}, "restore", "--machine", "vm", "--to", to, "--format", format)
	}
	if b, _ := os.ReadFile(to); string(b) != "precious" {
		t.Fatal("the target was overwritten")
	}
	mount := w.path("small")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", mount).Run()
	for _, format := range []string{"raw", "qcow2"} {
		w.fails(1, []string{"space"}, "restore", "--machine", "vm", "--to", filepath.Join(mount, "x"), "--format", format)
		if left, _ := filepath.Glob(filepath.Join(mount, "*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	}
	w.fails(1, []string{"vm2"}, "restore", "--machine", "vm2", "--to", w.path("y"))
	w.fails(1, []string{"zzz"}, "restore", "--machine", "vm", "--point", "zzz", "--to", w.path("y"))
}
