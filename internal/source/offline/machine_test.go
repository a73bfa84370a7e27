package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/testtool"
)

// one makes a machine of one disk, vda.
func one(path string, o Options) *Machine {
	o.Family = testFamily
	return New([]Image{{Name: "vda", Path: path}}, o)
}

func inspect(t testing.TB, m *Machine) source.Evidence {
	t.Helper()
	e, err := m.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// inspectGood wants all disks to be usable.
func inspectGood(t testing.TB, m *Machine) source.Evidence {
	t.Helper()
	e := inspect(t, m)
	for _, d := range e.Disks {
		if d.Err != nil {
			t.Fatal(d.Err)
		}
	}
	return e
}

// cutOf inspects and freezes. base 0 stands for a rescan.
func cutOf(t testing.TB, m *Machine, run, base int) source.Cut {
	t.Helper()
	var bases []source.Base
	for _, d := range inspectGood(t, m).Disks {
		b := source.Base{Disk: d.Name, Family: testFamily, AddFamily: true}
		if base > 0 {
			b.Run = testRun(t, base)
		}
		bases = append(bases, b)
	}
	c, err := m.Freeze(t.Context(), testRun(t, run), bases)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Abort(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// finish confirms and commits.
func finish(t testing.TB, c source.Cut) {
	t.Helper()
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func extents(t testing.TB, d source.Disk) string {
	t.Helper()
	all, err := extent.Collect(d.Extents(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(all)
}

// bitmaps describes the bitmaps of an image as QEMU sees the directory.
func bitmaps(t testing.TB, path string) string {
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
	list, err := readDirectory(qcow2.NewOSFile(f), h)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, b := range list {
		text := b.Name
		if b.Enabled {
			text += " recording"
		}
		if b.InUse {
			text += " in use"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

const mib = 1 << 20

func TestAFirstRunReadsEverythingAndStartsTheFamily(t *testing.T) {
	path := newImage(t, "8M")
	qemuIO(t, path, "write -P 5 1M 64k", "write -z 2M 64k")
	c := cutOf(t, one(path, Options{}), 1, 0)
	d := c.Disks()[0]
	if d.Name() != "vda" || d.Size() != 8*mib || d.DirtyBytes() != -1 {
		t.Errorf("disk %s of %d bytes, %d dirty", d.Name(), d.Size(), d.DirtyBytes())
	}
	if got, want := extents(t, d), "[[0,1048576)z [1048576,1114112) [1114112,8388608)z]"; got != want {
		t.Errorf("extents %s, want %s", got, want)
	}
	p := make([]byte, 64<<10)
	if _, err := d.ReadAt(p, mib); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{5}, len(p))) {
		t.Errorf("read: %v, first byte %d", err, p[0])
	}
	if n, err := d.ReadAt(p, 8*mib-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	finish(t, c)
	if got, want := bitmaps(t, path), bitmapName(t, 1, 0)+" recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
	checkClean(t, path)
}

func TestAnIncrementIsWhatTheGuestWroteSince(t *testing.T) {
	path := newImage(t, "8M")
	qemuIO(t, path, "write -P 5 1M 64k")
	finish(t, cutOf(t, one(path, Options{}), 1, 0))
	for run := 2; run <= 4; run++ {
		qemuIO(t, path, "write -P 6 3M 4k", fmt.Sprintf("write -z %dM 128k", run+2))
		m := one(path, Options{})
		e := inspectGood(t, m).Disk("vda")
		if b := e.Bitmaps[0]; !e.BitmapsUsable || len(e.Bitmaps) != 1 || !b.Ours || !b.Recording || b.InUse || b.Family.Stamp != testRun(t, run-1) || b.DirtyBytes != 192<<10 {
			t.Errorf("run %d: evidence %+v", run, e)
		}
		c := cutOf(t, m, run, run-1)
		zero := (run + 2) * mib
		if got, want := extents(t, c.Disks()[0]), fmt.Sprintf("[[3145728,3211264) [%d,%d)z]", zero, zero+128<<10); got != want {
			t.Errorf("run %d: extents %s, want %s", run, got, want)
		}
		if got := c.Disks()[0].DirtyBytes(); got != 192<<10 {
			t.Errorf("run %d: %d bytes dirty", run, got)
		}
		finish(t, c)
		if got, want := bitmaps(t, path), bitmapName(t, run, 0)+" recording"; got != want {
			t.Errorf("run %d: bitmaps %s, want %s", run, got, want)
		}
		checkClean(t, path)
	}
	c := cutOf(t, one(path, Options{}), 5, 4)
	if got := extents(t, c.Disks()[0]); got != "[]" {
		t.Errorf("after a reset: %s", got)
	}
}

func TestExtraRangesAndAllOfOurBitmapsAreRead(t *testing.T) {
	path := newImage(t, "8M")
	addBitmap(t, path, bitmapName(t, 1, 0), "--enable")
	qemuIO(t, path, "write -P 1 1M 64k")
	testtool.Run(t, "qemu-img", "bitmap", "--disable", path, bitmapName(t, 1, 0))
	addBitmap(t, path, bitmapName(t, 2, 1), "--enable")
	addBitmap(t, path, "somebody-elses")
	qemuIO(t, path, "write -P 2 2M 64k")
	m := one(path, Options{})
	inspectGood(t, m)
	base := source.Base{Disk: "vda", Run: testRun(t, 1), Family: testFamily, Extra: []extent.Extent{{Off: 7 * mib, Len: 9 * mib}}}
	c, err := m.Freeze(t.Context(), testRun(t, 3), []source.Base{base})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := extents(t, c.Disks()[0]), "[[1048576,1114112) [2097152,2162688) [7340032,8388608)z]"; got != want {
		t.Errorf("extents %s, want %s", got, want)
	}
	if got := c.Disks()[0].DirtyBytes(); got != mib+128<<10 {
		t.Errorf("%d bytes dirty", got)
	}
	finish(t, c)
	if got, want := bitmaps(t, path), bitmapName(t, 3, 0)+" recording, somebody-elses recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
	checkClean(t, path)
}

func TestAnIncrementOnAnUnknownRunIsRefused(t *testing.T) {
	path := newImage(t, "8M")
	addBitmap(t, path, bitmapName(t, 1, 0))
	m := one(path, Options{})
	inspectGood(t, m)
	_, err := m.Freeze(t.Context(), testRun(t, 3), []source.Base{{Disk: "vda", Run: testRun(t, 2), Family: testFamily}})
	if !errors.Is(err, source.ErrUnusable) || !strings.Contains(fmt.Sprint(err), "continues run") {
		t.Errorf("got %v", err)
	}
	if !canOpen(t, path) {
		t.Error("the image is still locked")
	}
}

func TestAbortLeavesTheBits(t *testing.T) {
	path := withBitmap(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, confirm := range []bool{false, true} {
		c := cutOf(t, one(path, Options{}), 2, 1)
		if confirm {
			if err := c.Confirm(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(c.Abort(t.Context()), c.Abort(t.Context())); err != nil {
			t.Error(err)
		}
		if err := c.Commit(t.Context()); !errors.Is(err, errMisuse) {
			t.Errorf("commit after abort: %v", err)
		}
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the image was written to")
	}
	if !canOpen(t, path) {
		t.Error("the image is still locked")
	}
}

func TestCommitWithoutConfirmIsRefused(t *testing.T) {
	path := newImage(t, "8M")
	c := cutOf(t, one(path, Options{}), 1, 0)
	if err := c.Commit(t.Context()); !errors.Is(err, errMisuse) {
		t.Errorf("got %v", err)
	}
	if got := bitmaps(t, path); got != "" {
		t.Errorf("bitmaps %s", got)
	}
}

func TestAnImageInUseIsRefusedAndItsHolderNamed(t *testing.T) {
	path := newImage(t, "8M")
	other := hold(t, path)
	e := inspect(t, one(path, Options{})).Disks[0]
	var held *source.HeldError
	if !errors.As(e.Err, &held) || len(held.Pids) != 1 || held.Pids[0] != other.pid {
		t.Errorf("got %v, want holder %d", e.Err, other.pid)
	}
	other.release(t)
	inspectGood(t, one(path, Options{}))

	// Readers are no reason not to read.
	hold(t, path, "-r")
	inspectGood(t, one(path, Options{}))
}

func TestAMachineThatStartsBetweenInspectAndFreezeIsNoticed(t *testing.T) {
	path := newImage(t, "8M")
	m := one(path, Options{})
	inspectGood(t, m)
	base := []source.Base{{Disk: "vda", Family: testFamily, AddFamily: true}}
	other := hold(t, path)
	if _, err := m.Freeze(t.Context(), testRun(t, 1), base); !errors.Is(err, source.ErrHeld) {
		t.Errorf("while it runs: %v", err)
	}
	other.release(t)
	qemuIO(t, path, "write 0 64k")
	if _, err := m.Freeze(t.Context(), testRun(t, 1), base); !errors.Is(err, source.ErrChanged) {
		t.Errorf("when it is off again: %v", err)
	}
}

// readUntilError reads until it fails.
func readUntilError(t testing.TB, d source.Disk) error {
	t.Helper()
	p := make([]byte, 4096)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := d.ReadAt(p, 0); err != nil {
			return err
		}
	}
	t.Fatal("reads go on while the machine runs")
	return nil
}

func TestAMachineMayStartWhileItsImageIsRead(t *testing.T) {
	path := withBitmap(t)
	c := cutOf(t, one(path, Options{}), 2, 1)
	other := hold(t, path)
	err := readUntilError(t, c.Disks()[0])
	if !errors.Is(err, source.ErrVMStarted) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), fmt.Sprint(other.pid)) {
		t.Errorf("got %v", err)
	}
	if _, err := extent.Collect(c.Disks()[0].Extents(t.Context())); !errors.Is(err, source.ErrVMStarted) {
		t.Errorf("extents: %v", err)
	}
	if err := c.Confirm(t.Context()); !errors.Is(err, source.ErrVMStarted) {
		t.Errorf("confirm: %v", err)
	}
	if err := c.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	other.release(t)
	if e := inspectGood(t, one(path, Options{})).Disks[0]; e.Bitmaps[0].DirtyBytes != 64<<10 {
		t.Errorf("the bits are gone: %+v", e.Bitmaps)
	}
}

func TestAMachineThatStartedAndStoppedUnseenIsNoticedAtTheEnd(t *testing.T) {
	path := newImage(t, "8M")
	c := cutOf(t, one(path, Options{}), 1, 0)
	c.(*cut).watch.end() // as if it had happened between two looks
	qemuIO(t, path, "write -P 9 0 64k")
	if err := c.Confirm(t.Context()); !errors.Is(err, source.ErrChanged) {
		t.Errorf("got %v", err)
	}
}

func TestAMachineThatStartsAtTheLastMomentIsNoticed(t *testing.T) {
	path := newImage(t, "8M")
	c := cutOf(t, one(path, Options{}), 1, 0)
	c.(*cut).watch.end()
	hold(t, path)
	if err := c.Confirm(t.Context()); !errors.Is(err, source.ErrVMStarted) {
		t.Errorf("got %v", err)
	}
}

func TestHoldKeepsMachinesFromStarting(t *testing.T) {
	path := newImage(t, "8M")
	c := cutOf(t, one(path, Options{Hold: true}), 1, 0)
	for range 3 {
		if canOpen(t, path) {
			t.Error("QEMU opens the image")
		}
	}
	if !canOpen(t, path, "-r") {
		t.Error("readers are kept out as well")
	}
	finish(t, c)
	if !canOpen(t, path) {
		t.Error("the image is still locked")
	}
}

func TestFromConfirmOnNobodyCanWrite(t *testing.T) {
	path := newImage(t, "8M")
	c := cutOf(t, one(path, Options{}), 1, 0)
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if canOpen(t, path) || canOpen(t, path, "-r") {
		t.Error("QEMU opens the image")
	}
	if err := c.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !canOpen(t, path) {
		t.Error("the image is still locked")
	}
}

func TestReadersDelayTheResetAndNothingElse(t *testing.T) {
	path := withBitmap(t)
	c := cutOf(t, one(path, Options{}), 2, 1)
	reader := hold(t, path, "-r")
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if canOpen(t, path) {
		t.Error("a writer gets in")
	}
	err := c.Commit(t.Context())
	var left *source.NotReset
	if !errors.As(err, &left) || !errors.Is(err, source.ErrReaders) || len(left.Disks) != 1 || left.Disks[0].Disk != "vda" {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(fmt.Sprint(err), fmt.Sprint(reader.pid)) {
		t.Errorf("%v does not name reader %d", err, reader.pid)
	}
	if got, want := bitmaps(t, path), bitmapName(t, 1, 0)+" recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
	reader.release(t)
	finish(t, cutOf(t, one(path, Options{}), 3, 1))
}

func TestSeveralImagesAreOneCut(t *testing.T) {
	a, b := newImage(t, "8M"), newImage(t, "16M")
	images := []Image{{Name: "vda", Path: a}, {Name: "vdb", Path: b}}
	m := New(images, Options{Family: testFamily})
	c := cutOf(t, m, 1, 0)
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if canOpen(t, a) || canOpen(t, b) {
		t.Error("QEMU opens an image")
	}
	if err := c.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{a, b} {
		if got, want := bitmaps(t, path), bitmapName(t, 1, 0)+" recording"; got != want {
			t.Errorf("%s: bitmaps %s, want %s", path, got, want)
		}
	}
	// One that starts stops the reading of all.
	c = cutOf(t, New(images, Options{Family: testFamily}), 2, 1)
	hold(t, b)
	if err := readUntilError(t, c.Disks()[0]); !errors.Is(err, source.ErrVMStarted) {
		t.Errorf("got %v", err)
	}
}

func TestOneFileUnderTwoNamesIsRefused(t *testing.T) {
	path := newImage(t, "8M")
	link, hard := filepath.Join(t.TempDir(), "link"), filepath.Join(filepath.Dir(path), "hard")
	if err := errors.Join(os.Symlink(path, link), os.Link(path, hard)); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{path, link, hard} {
		m := New([]Image{{Name: "vda", Path: path}, {Name: "vdb", Path: other}}, Options{Family: testFamily})
		if _, err := m.Inspect(t.Context()); !errors.Is(err, ErrSameFile) || !errors.Is(err, source.ErrUnusable) {
			t.Errorf("%s: got %v", other, err)
		}
	}
	over := filepath.Join(filepath.Dir(path), "over.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", path, over)
	m := New([]Image{{Name: "vda", Path: path}, {Name: "vdb", Path: over}}, Options{Family: testFamily, AllowDirs: []string{filepath.Dir(path)}})
	if _, err := m.Inspect(t.Context()); !errors.Is(err, ErrSameFile) {
		t.Errorf("image and backing file: got %v", err)
	}
}

func TestARawImageIsReadAndNeverWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte("raw"), 100_000), 0o400); err != nil {
		t.Fatal(err)
	}
	var flags []int
	o := Options{Family: testFamily, OpenFile: func(path string, f int) (*os.File, qcow2.File, error) {
		flags = append(flags, f)
		return openOSFile(path, f)
	}}
	m := New([]Image{{Name: "vda", Path: path, Raw: true}}, o)
	e := inspectGood(t, m).Disks[0]
	if e.Version != 0 || e.BitmapsUsable || e.BitmapsPossible || e.Why != whyRaw || e.Facts.Format != "raw" {
		t.Errorf("evidence %+v", e)
	}
	c := cutOf(t, m, 1, 0)
	if got := c.Disks()[0].Size(); got != 300_032 {
		t.Errorf("size %d", got)
	}
	finish(t, c)
	for _, f := range flags {
		if f != unix.O_RDONLY {
			t.Errorf("opened with flags %#x", f)
		}
	}
}

func TestAVersion2ImageIsReadAndLeftAlone(t *testing.T) {
	path := newImage(t, "8M", "-o", "compat=0.10")
	qemuIO(t, path, "write -P 1 0 64k")
	before, _ := os.ReadFile(path)
	m := one(path, Options{})
	if e := inspectGood(t, m).Disks[0]; e.Version != 2 || e.BitmapsUsable || e.BitmapsPossible || e.Why != whyVersion2 {
		t.Errorf("evidence %+v", e)
	}
	finish(t, cutOf(t, m, 1, 0))
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the image was written to")
	}
}

func TestWithoutAddFamilyNoBitmapIsMade(t *testing.T) {
	path := newImage(t, "8M")
	m := one(path, Options{})
	inspectGood(t, m)
	c, err := m.Freeze(t.Context(), testRun(t, 1), []source.Base{{Disk: "vda", Family: testFamily}})
	if err != nil {
		t.Fatal(err)
	}
	finish(t, c)
	if got := bitmaps(t, path); got != "" {
		t.Errorf("bitmaps %s", got)
	}
}

func TestAnotherFamilyIsLeftAlone(t *testing.T) {
	path := newImage(t, "8M")
	other := ident.BitmapName{Family: ident.FamilyID{9}, Stamp: testRun(t, 7)}.String()
	addBitmap(t, path, other)
	qemuIO(t, path, "write -P 1 0 64k")
	m := one(path, Options{})
	if e := inspectGood(t, m).Disks[0]; len(e.Bitmaps) != 1 || e.Bitmaps[0].Ours || e.Bitmaps[0].DirtyBytes != -1 || e.FamilyInLayers != 0 {
		t.Errorf("evidence %+v", e)
	}
	finish(t, cutOf(t, m, 1, 0))
	if got, want := bitmaps(t, path), other+" recording, "+bitmapName(t, 1, 0)+" recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
}

func TestFreezeNeedsAnInspection(t *testing.T) {
	path := newImage(t, "8M")
	base := []source.Base{{Disk: "vda", Family: testFamily}}
	if _, err := one(path, Options{}).Freeze(t.Context(), testRun(t, 1), base); err == nil {
		t.Error("frozen without a look")
	}
	m := one(path, Options{})
	inspectGood(t, m)
	if _, err := m.Freeze(t.Context(), ident.RunID{}, base); err == nil {
		t.Error("frozen for no run")
	}
	base[0].Disk = "vdx"
	if _, err := m.Freeze(t.Context(), testRun(t, 1), base); err == nil {
		t.Error("froze a disk that the machine does not have")
	}
}

func TestCancelledCallsHoldNothing(t *testing.T) {
	path := newImage(t, "8M")
	m := one(path, Options{})
	inspectGood(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Inspect(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("inspect: %v", err)
	}
	inspectGood(t, m)
	if _, err := m.Freeze(ctx, testRun(t, 1), []source.Base{{Disk: "vda", Family: testFamily}}); !errors.Is(err, context.Canceled) {
		t.Errorf("freeze: %v", err)
	}
	if got := lockedBytes(t, openLocks(t, path).f); len(got) != 0 {
		t.Errorf("locked bytes %v", got)
	}
}
