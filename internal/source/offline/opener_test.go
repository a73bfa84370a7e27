package offline

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
	"github.com/qbackup/qbackup/internal/testtool"
)

// tree is a folder of images and a folder that is nobody's business.
type tree struct{ root, images, outside string }

func newTree(t testing.TB) tree {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tr := tree{root: root, images: filepath.Join(root, "images"), outside: filepath.Join(root, "outside")}
	for _, folder := range []string{tr.images, filepath.Join(tr.images, "sub"), tr.outside} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "base.raw"), bytes.Repeat([]byte(filepath.Base(folder)+"!"), 1<<16), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// over makes an image on top of a raw file, by that name exactly.
func (tr tree) over(t testing.TB, backing string) string {
	t.Helper()
	path := filepath.Join(tr.images, "top.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path, "1M")
	return path
}

func TestOnlyFilesInAllowedFoldersAreFollowed(t *testing.T) {
	for _, c := range []struct {
		name    string
		backing func(tr tree) string
		allow   func(tr tree) []string
		want    string // the content that must be read; empty: refused
	}{
		{"nothing is allowed", func(tree) string { return "base.raw" }, func(tree) []string { return nil }, ""},
		{"beside the image", func(tree) string { return "base.raw" }, func(tr tree) []string { return []string{tr.images} }, "images!"},
		{"in a folder below", func(tree) string { return "sub/base.raw" }, func(tr tree) []string { return []string{tr.images} }, "sub!"},
		{"only the folder below is allowed", func(tree) string { return "base.raw" }, func(tr tree) []string { return []string{tr.images + "/sub"} }, ""},
		{"dots that lead out", func(tree) string { return "../outside/base.raw" }, func(tr tree) []string { return []string{tr.images} }, ""},
		{"dots that lead out and are allowed", func(tree) string { return "../outside/base.raw" }, func(tr tree) []string { return []string{tr.outside} }, "outside!"},
		{"dots that stay inside", func(tree) string { return "sub/../base.raw" }, func(tr tree) []string { return []string{tr.images} }, "images!"},
		{"absolute outside", func(tr tree) string { return tr.outside + "/base.raw" }, func(tr tree) []string { return []string{tr.images} }, ""},
		{"absolute inside", func(tr tree) string { return tr.images + "/sub/base.raw" }, func(tr tree) []string { return []string{tr.outside, tr.images} }, "sub!"},
		{"a folder with the same beginning", func(tr tree) string { return tr.outside + "/base.raw" }, func(tr tree) []string { return []string{tr.root + "/out"} }, ""},
		{"a symbolic link that leads out", func(tr tree) string {
			_ = os.Symlink(tr.outside+"/base.raw", tr.images+"/link.raw")
			return "link.raw"
		}, func(tr tree) []string { return []string{tr.images} }, ""},
		{"a linked folder that leads out", func(tr tree) string {
			_ = os.Symlink(tr.outside, tr.images+"/linked")
			return "linked/base.raw"
		}, func(tr tree) []string { return []string{tr.images} }, ""},
		{"a linked folder and dots", func(tr tree) string {
			_ = os.Symlink(tr.outside, tr.images+"/linked")
			return "linked/../images/base.raw"
		}, func(tr tree) []string { return []string{tr.images} }, "images!"},
		{"a symbolic link that stays inside", func(tr tree) string {
			_ = os.Symlink("sub/base.raw", tr.images+"/link.raw")
			return "link.raw"
		}, func(tr tree) []string { return []string{tr.images} }, "sub!"},
		{"an allowed folder by a link", func(tree) string { return "base.raw" }, func(tr tree) []string {
			_ = os.Symlink(tr.images, tr.root+"/alias")
			return []string{tr.root + "/alias"}
		}, "images!"},
		{"a process's own descriptors", func(tree) string { return "/proc/self/fd/0" }, func(tr tree) []string { return []string{tr.images} }, ""},
		{"a pipe", func(tr tree) string { return "/dev/null" }, func(tr tree) []string { return []string{"/dev"} }, ""},
		{"the allowed folder itself", func(tr tree) string { return "../images" }, func(tr tree) []string { return []string{tr.images} }, ""},
		{"a protocol", func(tr tree) string { return "nbd:unix:/sock" }, func(tr tree) []string { return []string{"/"} }, ""},
		{"missing", func(tr tree) string { return "none.raw" }, func(tr tree) []string { return []string{tr.images} }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(t)
			path := tr.over(t, c.backing(tr))
			m := one(path, Options{AllowDirs: c.allow(tr)})
			err := inspect(t, m).Disks[0].Err
			if c.want == "" {
				if !errors.Is(err, source.ErrUnusable) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, len(c.want))
			if _, err := cutOf(t, m, 1, 0).Disks()[0].ReadAt(p, 0); err != nil || string(p) != c.want {
				t.Errorf("read %q, want %q (%v)", p, c.want, err)
			}
		})
	}
}

func TestARefusalSaysWhatWouldHelp(t *testing.T) {
	tr := newTree(t)
	err := inspect(t, one(tr.over(t, "base.raw"), Options{})).Disks[0].Err
	if !errors.Is(err, qcow2.ErrNotAllowed) || !strings.Contains(err.Error(), "--allow-dir") {
		t.Errorf("got %v", err)
	}
	err = inspect(t, one(tr.over(t, "base.raw"), Options{AllowDirs: []string{tr.root + "/none"}})).Disks[0].Err
	if err == nil || !strings.Contains(err.Error(), "allowed folder") {
		t.Errorf("an allowed folder that is not there: %v", err)
	}
}

func TestARelativeNameIsTakenFromWhereTheImageWasNamed(t *testing.T) {
	// QEMU looks beside the link, not beside the image that it leads to.
	tr := newTree(t)
	link := filepath.Join(tr.outside, "link.qcow2")
	if err := os.Symlink(tr.over(t, "base.raw"), link); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8)
	c := cutOf(t, one(link, Options{AllowDirs: []string{tr.root}}), 1, 0)
	if _, err := c.Disks()[0].ReadAt(p, 0); err != nil || string(p) != "outside!" {
		t.Errorf("read %q (%v)", p, err)
	}
	want := testtool.Run(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -v 0 8", link)
	if !strings.Contains(want, "6f 75 74 73 69 64 65 21") {
		t.Errorf("QEMU reads something else:\n%s", want)
	}
}

func TestAFileThatBecomesALinkAfterTheLookIsNotFollowed(t *testing.T) {
	tr := newTree(t)
	o := &opener{allowed: []string{tr.images}}
	path := filepath.Join(tr.images, "sub", "base.raw")
	f, err := o.openBeneath(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := errors.Join(os.RemoveAll(filepath.Join(tr.images, "sub")), os.Symlink(tr.outside, filepath.Join(tr.images, "sub"))); err != nil {
		t.Fatal(err)
	}
	if f, err := o.openBeneath(path); err == nil {
		f.Close()
		t.Error("the link was followed")
	}
	if err := errors.Join(os.Remove(filepath.Join(tr.images, "sub")), os.Symlink("base.raw", filepath.Join(tr.images, "last.raw"))); err != nil {
		t.Fatal(err)
	}
	if f, err := o.openBeneath(filepath.Join(tr.images, "last.raw")); err == nil {
		f.Close()
		t.Error("a link in the last component was followed")
	}
}

func TestAChainThatBitesItsTailIsRefused(t *testing.T) {
	tr := newTree(t)
	path := filepath.Join(tr.images, "top.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "hard.qcow2", path, "1M")
	if err := os.Link(path, filepath.Join(tr.images, "hard.qcow2")); err != nil {
		t.Fatal(err)
	}
	err := inspect(t, one(path, Options{AllowDirs: []string{tr.images}})).Disks[0].Err
	if !errors.Is(err, qcow2.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestABackingFileInUseIsWatched(t *testing.T) {
	folder := t.TempDir()
	base, path := filepath.Join(folder, "base.qcow2"), filepath.Join(folder, "top.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "1M")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", path)
	m := one(path, Options{AllowDirs: []string{folder}})
	c := cutOf(t, m, 1, 0)
	other := hold(t, base)
	if err := readUntilError(t, c.Disks()[0]); !errors.Is(err, source.ErrVMStarted) {
		t.Errorf("got %v", err)
	}
	if err := c.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := inspect(t, m).Disks[0].Err; !errors.Is(err, source.ErrHeld) || !strings.Contains(fmt.Sprint(err), base) {
		t.Errorf("got %v", err)
	}
	other.release(t)
	// Another machine may run on the same template.
	hold(t, base, "-r")
	finish(t, cutOf(t, m, 2, 0))
}

func TestADataFileIsReadWatchedAndFoundByName(t *testing.T) {
	tr := newTree(t)
	path, data := filepath.Join(tr.images, "top.qcow2"), filepath.Join(tr.images, "disk.data")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+data, path, "1M")
	qemuIO(t, path, "write -P 7 64k 64k")
	m := one(path, Options{AllowDirs: []string{tr.images}})
	e := inspectGood(t, m).Disks[0]
	if len(e.Facts.Chain) != 2 || e.Facts.Chain[1].Role != facts.RoleData || e.Facts.Chain[1].Path != data {
		t.Errorf("chain %+v", e.Facts.Chain)
	}
	c := cutOf(t, m, 1, 0)
	p := make([]byte, 4)
	if _, err := c.Disks()[0].ReadAt(p, 64<<10); err != nil || string(p) != "\a\a\a\a" {
		t.Errorf("read %q (%v)", p, err)
	}
	finish(t, c)
	qemuIO(t, path, "write -P 8 128k 64k")
	if got, want := extents(t, cutOf(t, m, 2, 1).Disks()[0]), "[[131072,196608)]"; got != want {
		t.Errorf("extents %s, want %s", got, want)
	}

	// A relative name is looked for beside the image and in the working folder;
	// when both have one, nobody knows which QEMU took.
	relative := filepath.Join(tr.images, "relative.qcow2")
	t.Chdir(tr.images)
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=rel.data", relative, "1M")
	m = one(relative, Options{AllowDirs: []string{tr.root}})
	inspectGood(t, m)
	t.Chdir(tr.outside)
	inspectGood(t, m)
	if err := os.WriteFile("rel.data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := inspect(t, m).Disks[0].Err; !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "are there") {
		t.Errorf("got %v", err)
	}
}
