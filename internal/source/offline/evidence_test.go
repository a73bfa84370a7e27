package offline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
	"github.com/qbackup/qbackup/internal/testtool"
)

// patch overwrites bytes of a file.
func patch(t testing.TB, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func header(t testing.TB, path string) *qcow2.Header {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := qcow2.ReadHeader(qcow2.NewOSFile(f))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func number(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func TestWhatCannotBeUsedIsRefusedWithAReason(t *testing.T) {
	directory := func(t testing.TB, path string) int64 { return header(t, path).Bitmaps.DirectoryOffset }
	for _, c := range []struct {
		name  string
		spoil func(t testing.TB, path string)
		want  error
		text  string
	}{
		{"not a qcow2", func(t testing.TB, path string) { patch(t, path, 0, 'M', 'Z') }, qcow2.ErrNotQcow2, "raw:PATH"},
		{"empty", func(t testing.TB, path string) { testtool.Run(t, "truncate", "-s", "0", path) }, qcow2.ErrNotQcow2, ""},
		{"truncated", func(t testing.TB, path string) { testtool.Run(t, "truncate", "-s", "200000", path) }, qcow2.ErrCorrupt, "within the file of 200000 bytes"},
		{"corrupt bit", func(t testing.TB, path string) { patch(t, path, 79, 2) }, qcow2.ErrCorrupt, "qemu-img check"},
		{"dirty bit", func(t testing.TB, path string) { patch(t, path, 79, 1) }, qcow2.ErrDirty, "qemu-img check"},
		{"unknown incompatible feature", func(t testing.TB, path string) { patch(t, path, 72, 0x40) }, qcow2.ErrUnsupported, "bit 62"},
		{"encrypted", func(t testing.TB, path string) { patch(t, path, 35, 1) }, qcow2.ErrEncrypted, "inside the guest"},
		{"table offset 0", func(t testing.TB, path string) { patch(t, path, directory(t, path), number(0)...) }, qcow2.ErrCorrupt, "no bitmap table"},
		{"table size 0", func(t testing.TB, path string) { patch(t, path, directory(t, path)+8, 0, 0, 0, 0) }, qcow2.ErrCorrupt, "no bitmap table"},
		{"table size off by one", func(t testing.TB, path string) { patch(t, path, directory(t, path)+8, 0, 0, 0, 2) }, qcow2.ErrCorrupt, "instead of 1"},
		{"unknown flag", func(t testing.TB, path string) { patch(t, path, directory(t, path)+12, 0, 0, 0, 0xa) }, qcow2.ErrUnsupported, "flags 0x8"},
		{"table beyond the end", func(t testing.TB, path string) { patch(t, path, directory(t, path), number(1<<40)...) }, qcow2.ErrCorrupt, "bitmap table"},
		{"bits beyond the end", func(t testing.TB, path string) {
			f, _ := os.Open(path)
			var table [8]byte
			_, err := f.ReadAt(table[:], directory(t, path))
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			patch(t, path, int64(binary.BigEndian.Uint64(table[:])), number(1<<40)...)
		}, qcow2.ErrCorrupt, "bits at 1099511627776"},
		{"missing", func(t testing.TB, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, os.ErrNotExist, "check the path"},
		{"folder", func(t testing.TB, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, nil, "it is a folder"},
		{"pipe", func(t testing.TB, path string) {
			if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, nil, "it is a pipe"},
		{"terminal", func(t testing.TB, path string) {
			if err := errors.Join(os.Remove(path), os.Symlink("/dev/null", path)); err != nil {
				t.Fatal(err)
			}
		}, nil, "it is a character device"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := withBitmap(t)
			c.spoil(t, path)
			err := inspect(t, one(path, Options{})).Disks[0].Err
			if !errors.Is(err, source.ErrUnusable) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if text := fmt.Sprint(err); !strings.Contains(text, c.text) || !strings.Contains(text, path) {
				t.Errorf("%q does not say %q and the path", text, c.text)
			}
		})
	}
}

func TestOneBadDiskLeavesTheOthersInspected(t *testing.T) {
	good, bad := withBitmap(t), withBitmap(t)
	patch(t, bad, 0, 0)
	e := inspect(t, New([]Image{{Name: "bad", Path: bad}, {Name: "good", Path: good}}, Options{Family: testFamily}))
	if e.Disk("bad").Err == nil || e.Disk("good").Err != nil || e.Disk("good").Bitmaps[0].DirtyBytes != 64<<10 {
		t.Errorf("evidence %+v", e)
	}
}

func TestABitmapInUseAfterACrashIsReplaced(t *testing.T) {
	path := withBitmap(t)
	patch(t, path, header(t, path).Bitmaps.DirectoryOffset+12, 0, 0, 0, 3)
	m := one(path, Options{})
	e := inspectGood(t, m).Disks[0]
	if b := e.Bitmaps[0]; !b.InUse || b.Recording || b.Usable() || b.DirtyBytes != -1 || !b.Ours || !e.BitmapsUsable || !e.BitmapsPossible {
		t.Errorf("evidence %+v", e)
	}
	base := []source.Base{{Disk: "vda", Run: testRun(t, 1), Family: testFamily, AddFamily: true}}
	if _, err := m.Freeze(t.Context(), testRun(t, 2), base); !errors.Is(err, source.ErrUnusable) {
		t.Errorf("its bits are believed: %v", err)
	}
	finish(t, cutOf(t, m, 2, 0))
	if got, want := bitmaps(t, path), bitmapName(t, 2, 0)+" recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
	checkClean(t, path)
}

func TestACrashedQEMULeavesItsBitmapInUse(t *testing.T) {
	path := withBitmap(t)
	other := hold(t, path)
	p, err := os.FindProcess(other.pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	other.release(t)
	if b := inspectGood(t, one(path, Options{})).Disks[0].Bitmaps[0]; !b.InUse || b.Usable() {
		t.Errorf("evidence %+v", b)
	}
}

func TestAnUnknownAutoclearFeatureAllowsNoNewBitmap(t *testing.T) {
	path := withBitmap(t)
	patch(t, path, 95, 1|1<<5)
	e := inspectGood(t, one(path, Options{})).Disks[0]
	if !e.BitmapsUsable || e.BitmapsPossible || !strings.Contains(e.Why, "autoclear features 0x20") {
		t.Errorf("evidence %+v", e)
	}
}

func TestAnUnsetAutoclearBitMakesAllBitmapsUseless(t *testing.T) {
	path := withBitmap(t)
	patch(t, path, 95, 0)
	m := one(path, Options{})
	e := inspectGood(t, m).Disks[0]
	if e.BitmapsUsable || e.Why != whyAutoclear || !e.BitmapsPossible || len(e.Bitmaps) != 1 || e.Bitmaps[0].DirtyBytes != -1 {
		t.Errorf("evidence %+v", e)
	}
	base := []source.Base{{Disk: "vda", Run: testRun(t, 1), Family: testFamily, AddFamily: true}}
	if _, err := m.Freeze(t.Context(), testRun(t, 2), base); !errors.Is(err, source.ErrUnusable) {
		t.Errorf("its bits are believed: %v", err)
	}
	finish(t, cutOf(t, m, 2, 0))
	if got, want := bitmaps(t, path), bitmapName(t, 2, 0)+" recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
	if !canOpen(t, path) {
		t.Error("QEMU does not open the image")
	}
}

func TestAnImageThatWeMayNotWriteToIsRefusedBeforeAnythingIsRead(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EACCES, unix.EROFS, unix.EPERM} {
		refuse := func(path string, flags int) (*os.File, qcow2.File, error) {
			if flags&unix.O_RDWR != 0 {
				return nil, nil, &os.PathError{Op: "open", Path: path, Err: errno}
			}
			return openOSFile(path, flags)
		}
		path := withBitmap(t)
		err := inspect(t, one(path, Options{OpenFile: refuse})).Disks[0].Err
		if !errors.Is(err, source.ErrReadOnly) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "could not be reset") {
			t.Errorf("%v: got %v", errno, err)
		}
		// Version 2 has no bitmaps, so there is nothing to write.
		old := newImage(t, "8M", "-o", "compat=0.10")
		if err := inspect(t, one(old, Options{OpenFile: refuse})).Disks[0].Err; err != nil {
			t.Errorf("%v: version 2: got %v", errno, err)
		}
	}
}

func TestAnUnreadableImageSaysSo(t *testing.T) {
	refuse := func(path string, flags int) (*os.File, qcow2.File, error) {
		return nil, nil, &os.PathError{Op: "open", Path: path, Err: unix.EACCES}
	}
	err := inspect(t, one(withBitmap(t), Options{OpenFile: refuse})).Disks[0].Err
	if !errors.Is(err, os.ErrPermission) || !errors.Is(err, source.ErrUnusable) || errors.Is(err, source.ErrReadOnly) {
		t.Errorf("got %v", err)
	}
}

func TestFactsDescribeTheWholeChain(t *testing.T) {
	folder := t.TempDir()
	base, path := filepath.Join(folder, "base.raw"), filepath.Join(folder, "top.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", base, "4M")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", path, "8M")
	addBitmap(t, path, bitmapName(t, 1, 0), "-g", "32768")
	look := func() source.DiskEvidence {
		return inspectGood(t, one(path, Options{AllowDirs: []string{folder}})).Disks[0]
	}
	f := look().Facts
	if f.Path != path || f.Format != "qcow2" || f.ClusterBytes != 64<<10 || f.GranularityBytes != 32<<10 || len(f.Chain) != 2 || f.Inode == 0 {
		t.Fatalf("facts %+v", f)
	}
	top, below, activeL1 := f.Chain[0], f.Chain[1], f.ActiveL1
	if top.Role != facts.RoleTop || top.Backing != "base.raw" || top.DiskBytes != 8*mib || top.Format != "qcow2" || top.Header.IsZero() || top.ModifiedNanos == 0 || top.ChangedNanos == 0 {
		t.Errorf("top %+v", top)
	}
	if below.Role != facts.RoleBacking || below.Path != base || below.Format != "raw" || below.FileBytes != 4*mib || !below.Header.IsZero() {
		t.Errorf("below %+v", below)
	}
	// Who looks while a machine may run sees the same, but for what guests change.
	running, err := facts.Running(path, false)
	f.ActiveL1, f.GranularityBytes = format.Hash{}, 0
	if err != nil || !reflect.DeepEqual(running, f) {
		t.Errorf("while it may run: %+v, %v", running, err)
	}
	// What guests, QEMU and we do changes neither headers nor the layer below.
	qemuIO(t, path, "write 5M 64k")
	testtool.Run(t, "qemu-img", "resize", "-q", path, "9M")
	finish(t, cutOf(t, one(path, Options{AllowDirs: []string{folder}}), 2, 0))
	again := look().Facts
	if again.Chain[1] != below || again.Chain[0].Header != top.Header || again.ActiveL1 == activeL1 {
		t.Errorf("afterwards %+v", again)
	}
	// Another size does, since a grown file is another disk.
	testtool.Run(t, "truncate", "-s", "5M", base)
	if look().Facts.Chain[1] == below {
		t.Error("the layer below has changed, and its facts have not")
	}
	// So does another name in the header.
	testtool.Run(t, "qemu-img", "rebase", "-u", "-F", "raw", "-b", base, path)
	if look().Facts.Chain[0].Header == top.Header {
		t.Error("the backing file has another name, and the header's hash is the same")
	}
}

func TestAFamilyInTwoLayersIsCounted(t *testing.T) {
	base := withBitmap(t)
	path := filepath.Join(filepath.Dir(base), "over.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, path)
	o := Options{AllowDirs: []string{filepath.Dir(base)}}
	if got := inspectGood(t, one(path, o)).Disks[0]; got.FamilyInLayers != 1 || len(got.Bitmaps) != 0 {
		t.Errorf("only below: %+v", got)
	}
	addBitmap(t, path, bitmapName(t, 2, 0))
	if got := inspectGood(t, one(path, o)).Disks[0]; got.FamilyInLayers != 2 || len(got.Bitmaps) != 1 {
		t.Errorf("in both: %+v", got)
	}
}

func TestAnAllDirtyTableEntryIsTheWholeDisk(t *testing.T) {
	path := withBitmap(t)
	var table [8]byte
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.ReadAt(table[:], header(t, path).Bitmaps.DirectoryOffset)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	patch(t, path, int64(binary.BigEndian.Uint64(table[:])), number(1)...)
	m := one(path, Options{})
	if got := inspectGood(t, m).Disks[0].Bitmaps[0].DirtyBytes; got != 8*mib {
		t.Errorf("%d bytes dirty", got)
	}
	c := cutOf(t, m, 2, 1)
	if got, want := extents(t, c.Disks()[0]), "[[0,2097152)z [2097152,2162688) [2162688,8388608)z]"; got != want {
		t.Errorf("extents %s, want %s", got, want)
	}
}
