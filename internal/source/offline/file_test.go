package offline

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestFileSystemsThatSeveralHostsWriteToAreKnown(t *testing.T) {
	for name, c := range map[string]struct {
		magic  int64
		shared bool
	}{
		"NFS": {0x6969, true}, "CIFS": {0xff534d42, true}, "SMB2": {0xfe534d42, true}, "FUSE": {0x65735546, true},
		"GFS2": {0x01161970, true}, "OCFS2": {0x7461636f, true}, "Ceph": {0x00c36400, true}, "Lustre": {0x0bd00bd0, true},
		"ext4": {unix.EXT4_SUPER_MAGIC, false}, "XFS": {unix.XFS_SUPER_MAGIC, false}, "btrfs": {unix.BTRFS_SUPER_MAGIC, false}, "tmpfs": {unix.TMPFS_MAGIC, false},
	} {
		if got := sharedFileSystem(c.magic); got != c.shared {
			t.Errorf("%s: shared %v", name, got)
		}
	}
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := onSharedFileSystem(f); err != nil {
		t.Error(err)
	}
}

func openTestFile(t testing.TB, path string) *file {
	t.Helper()
	f, err := openTop(openOSFile, path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.close() })
	return f
}

func TestDroppedPagesAreReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := openTestFile(t, path)
	for _, shared := range []bool{false, true} {
		f.shared = shared
		if err := f.dropPages(); err != nil {
			t.Errorf("shared %v: %v", shared, err)
		}
		if b, err := readRange(f.io, 0, 8); err != nil || string(b) != "first\x00\x00\x00" {
			t.Errorf("shared %v: read %q, %v", shared, b, err)
		}
	}
}

func TestAFileThatWasJustWrittenIsGivenTimeToSettle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := openTestFile(t, path)
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	before, err := f.stamp()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if after, err := f.stamp(); err != nil || after == before {
		t.Errorf("a later change has the same times (%v)", err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if err := f.settle(); err != nil {
		t.Error(err)
	}
}

func TestADifferenceSaysWhatItIs(t *testing.T) {
	was := print{files: []filePrint{{path: "/vm/a", stamp: facts.Stamp{Device: 1, Inode: 2, SizeBytes: 3, ModifiedNanos: 4, ChangedNanos: 5}}}}
	for want, change := range map[string]func(*print){
		"":                                func(*print) {},
		"/vm/b instead of /vm/a":          func(p *print) { p.files[0].path = "/vm/b" },
		"/vm/a is another file":           func(p *print) { p.files[0].stamp.Inode = 9 },
		"/vm/a has 9 bytes instead of 3":  func(p *print) { p.files[0].stamp.SizeBytes = 9 },
		"/vm/a was modified":              func(p *print) { p.files[0].stamp.ModifiedNanos++ },
		"/vm/a was changed":               func(p *print) { p.files[0].stamp.ChangedNanos++ },
		"/vm/a has another header":        func(p *print) { p.files[0].header[0]++ },
		"the bitmap directory was rewr":   func(p *print) { p.directory[0]++ },
		"a bitmap table was rewritten":    func(p *print) { p.tables[0]++ },
		"the disk is made of 2 files ins": func(p *print) { p.files = append(p.files, filePrint{}) },
	} {
		now := was
		now.files = append([]filePrint(nil), was.files...)
		change(&now)
		if got := was.difference(now); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// loopDevice makes a block device of a file, where the test may.
func loopDevice(t testing.TB, path string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("block devices need root")
	}
	out, code := testtool.Try(t, "losetup", "--find", "--show", path)
	if code != 0 {
		if os.Getenv("QBACKUP_REQUIRE_TOOLS") == "1" {
			t.Fatalf("no loop devices here: %s", out)
		}
		t.Skipf("no loop devices here: %s", out)
	}
	device := strings.TrimSpace(out)
	t.Cleanup(func() {
		// The test's context has ended here.
		if out, err := exec.Command(testtool.Need(t, "losetup"), "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v\n%s", err, out)
		}
	})
	return device
}

func TestABlockDeviceIsOnlyReadWhenMachinesAreKeptOut(t *testing.T) {
	path := withBitmap(t)
	testtool.Run(t, "truncate", "-s", "4M", path)
	device := loopDevice(t, path)
	err := inspect(t, one(device, Options{})).Disks[0].Err
	if !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "--hold") {
		t.Errorf("got %v", err)
	}
	m := one(device, Options{Hold: true})
	c := cutOf(t, m, 2, 1)
	if got, want := extents(t, c.Disks()[0]), "[[2097152,2162688)]"; got != want {
		t.Errorf("extents %s, want %s", got, want)
	}
	if canOpen(t, device) {
		t.Error("QEMU opens the device")
	}
	finish(t, c)
	if got, want := bitmaps(t, device), bitmapName(t, 2, 0)+" recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
}
