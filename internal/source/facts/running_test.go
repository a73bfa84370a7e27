package facts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/testtool"
)

func create(t *testing.T, path string, args ...string) {
	t.Helper()
	testtool.Run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "4M")...)
}

func TestADataFileIsALayerWithoutTheTimeOfItsLastWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	data := filepath.Join(filepath.Dir(path), "a.data")
	create(t, path, "-o", "data_file="+data)
	f, err := Running(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Chain) != 2 || f.Chain[1].Role != RoleData || f.Chain[1].Path != data || f.Chain[1].ModifiedNanos != 0 || f.Chain[1].ChangedNanos == 0 {
		t.Errorf("chain %+v", f.Chain)
	}
	if f.Chain[0].Role != RoleTop || f.Chain[0].ModifiedNanos == 0 || f.ClusterBytes != 64<<10 || f.Format != FormatQcow2 {
		t.Errorf("facts %+v", f)
	}
}

func TestSymbolicLinksAreFollowedAsQEMUDoes(t *testing.T) {
	folder := t.TempDir()
	real := filepath.Join(folder, "pool")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	// The name in the image leads on from the link, not from where that leads.
	create(t, filepath.Join(folder, "base.qcow2"))
	create(t, filepath.Join(real, "top.qcow2"), "-u", "-b", "base.qcow2", "-F", "qcow2")
	link := filepath.Join(folder, "top.qcow2")
	if err := os.Symlink(filepath.Join(real, "top.qcow2"), link); err != nil {
		t.Fatal(err)
	}
	f, err := Running(link, false)
	if err != nil || len(f.Chain) != 2 || f.Path != filepath.Join(real, "top.qcow2") || f.Chain[1].Path != filepath.Join(folder, "base.qcow2") {
		t.Errorf("facts %+v, %v", f, err)
	}
}

func TestARawDiskIsNotParsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.raw")
	if err := os.WriteFile(path, []byte("QFI\xfb and nothing that makes sense"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Running(path, true)
	if err != nil || f.Format != FormatRaw || len(f.Chain) != 1 || !f.Chain[0].Header.IsZero() {
		t.Errorf("facts %+v, %v", f, err)
	}
	if _, err := Running(path, false); err == nil {
		t.Error("garbage was taken for qcow2")
	}
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	folder := t.TempDir()
	pipe, loop := filepath.Join(folder, "pipe"), filepath.Join(folder, "loop.qcow2")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(folder, "other.qcow2")
	create(t, loop, "-u", "-b", other, "-F", "qcow2")
	create(t, other, "-u", "-b", loop, "-F", "qcow2")
	hostile := filepath.Join(folder, "hostile.qcow2")
	create(t, hostile, "-u", "-b", pipe, "-F", "qcow2")
	for path, want := range map[string]string{
		pipe: "neither a regular file", hostile: "neither a regular file", folder: "neither a regular file", loop: "circle",
		filepath.Join(folder, "none"): "no such file", "relative": "not an absolute path",
	} {
		if _, err := Running(path, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
