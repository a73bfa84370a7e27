package live

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/testtool"
)

func blockdev(path string) string {
	return "driver=qcow2,discard=unmap,file.driver=file,file.filename=" + path
}

func TestEvidenceSaysWhatQEMUHas(t *testing.T) {
	d := newDaemon(t)
	a, old := d.image("a.qcow2"), d.image("old.qcow2", "-o", "compat=0.10")
	raw := filepath.Join(d.dir, "b.raw")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", raw, "2M")
	testtool.Run(t, "qemu-img", "bitmap", "--add", a, "foreign")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "--disable", a, bitmapOf(1, 0))
	// A name without a folder is where QEMU was started.
	d.start(blockdev("a.qcow2"), "driver=raw,file.driver=file,file.filename="+raw, blockdev(old))
	e := d.inspect(d.machine())
	if !strings.Contains(e.QEMU, ".") || len(e.Disks) != 3 {
		t.Fatalf("evidence %+v", e)
	}
	one, two, three := e.Disks[0], e.Disks[1], e.Disks[2]
	if one.Name != "a" || one.Path != a || one.Version != 3 || one.SizeBytes != 4*mib || !one.BitmapsUsable || !one.BitmapsPossible || len(one.Bitmaps) != 2 || one.FamilyInLayers != 1 {
		t.Errorf("a: %+v", one)
	}
	for _, b := range one.Bitmaps {
		if b.Ours == (b.Name == "foreign") || b.Recording != (b.Name == "foreign") || b.InUse {
			t.Errorf("bitmap %+v", b)
		}
	}
	if len(one.Facts.Chain) != 1 || one.Facts.Path != a || one.Facts.Chain[0].Header.IsZero() || one.Facts.Inode == 0 || one.Facts.GranularityBytes != 64<<10 {
		t.Errorf("facts of a: %+v", one.Facts)
	}
	if two.Name != "b" || two.Version != 0 || two.BitmapsPossible || two.SizeBytes != 2*mib || two.Facts.Format != "raw" {
		t.Errorf("b: %+v", two)
	}
	if three.Name != "old" || three.Version != 2 || three.BitmapsPossible {
		t.Errorf("old: %+v", three)
	}
}

func TestDisksCanBeChosenAndNamed(t *testing.T) {
	d := newDaemon(t)
	a, b := d.image("a.qcow2"), d.image("b.qcow2")
	d.start(blockdev(a), blockdev(b))
	m := d.machine()
	m.options.Disks = []Disk{{"root", b}, {"gone", filepath.Join(d.dir, "c.qcow2")}}
	e := d.inspect(m)
	if len(e.Disks) != 2 || e.Disks[0].Name != "root" || e.Disks[0].Err != nil || e.Disks[1].Err == nil || !strings.Contains(e.Disks[1].Err.Error(), a) {
		t.Errorf("disks %+v", e.Disks)
	}
}

func TestDisksOfOneNameAreRefused(t *testing.T) {
	d := newDaemon(t)
	if err := os.Mkdir(filepath.Join(d.dir, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.start(blockdev(d.image("a.qcow2")), blockdev(d.image("x/a.qcow2")))
	if _, err := d.machine().Inspect(t.Context()); !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "NAME=IMAGE") {
		t.Errorf("%v", err)
	}
}

func TestAMonitorThatCannotBeAskedIsExplained(t *testing.T) {
	d := newDaemon(t)
	d.start(blockdev(d.image("a.qcow2")))
	inspect := func(path string) error {
		m := d.machine()
		m.options.Monitor = path
		_, err := m.Inspect(t.Context())
		return err
	}
	if err := inspect(filepath.Join(d.dir, "none")); !errors.Is(err, source.ErrMonitor) || !strings.Contains(err.Error(), "is off") || Answers(filepath.Join(d.dir, "none")) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(d.dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("SSH-2.0-OpenSSH_9.2\n"))
			_ = conn.Close()
		}
	}()
	if err := inspect(filepath.Join(d.dir, "other")); !errors.Is(err, source.ErrMonitor) || !errors.Is(err, source.ErrUnusable) {
		t.Errorf("another program: %v", err)
	}
	if !Answers(d.monitor()) {
		t.Error("the monitor does not answer")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.machine().Inspect(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// freeze makes a cut of d0.
func (d *daemon) freeze(m *Machine, run byte, base source.Base) source.Cut {
	d.t.Helper()
	base.Disk, base.Family = "a", testFamily
	d.inspect(m)
	c, err := m.Freeze(d.t.Context(), testRun(run), []source.Base{base})
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// write writes to the image before the daemon has it.
func write(t *testing.T, path, command string) {
	t.Helper()
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", command, path)
}

// cuts tries what every QEMU can do, and then what is done with one from before 5.2.
func cuts(t *testing.T, test func(t *testing.T, forget func(*features))) {
	t.Run("now", func(t *testing.T) { test(t, nil) })
	t.Run("before 5.2", func(t *testing.T) {
		test(t, func(f *features) {
			f.blockExports, f.maxConnections, f.flat, f.removeInTransaction = false, false, false, false
		})
	})
}

func TestACutThatIsCommittedLeavesTheNewBitmapAlone(t *testing.T) {
	cuts(t, func(t *testing.T, forget func(*features)) {
		d := newDaemon(t)
		a := d.image("a.qcow2")
		testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "32768", a, bitmapOf(1, 0))
		testtool.Run(t, "qemu-img", "bitmap", "--add", "--disable", a, bitmapOf(9, 0))
		testtool.Run(t, "qemu-img", "bitmap", "--add", a, "foreign")
		write(t, a, "write -P 5 1M 40k")
		d.start(blockdev(a))
		m := d.machine()
		m.options.forget = forget
		c := d.freeze(m, 2, source.Base{Run: testRun(1), Extra: []extent.Extent{{Off: 3 * mib, Len: mib + 7}}})
		disk := c.Disks()[0]
		if disk.Name() != "a" || disk.Size() != 4*mib || disk.DirtyBytes() != 64<<10+mib {
			t.Errorf("disk %s of %d bytes, %d dirty", disk.Name(), disk.Size(), disk.DirtyBytes())
		}
		got, err := extent.Collect(disk.Extents(t.Context()))
		want := []extent.Extent{{Off: mib, Len: 64 << 10}, {Off: 3 * mib, Len: mib, Zero: true}}
		if err != nil || len(got) < 2 || got[0].Off != want[0].Off || got[len(got)-1] != want[1] {
			t.Errorf("extents %v, %v", got, err)
		}
		b := make([]byte, 64<<10)
		if n, err := disk.ReadAt(b, mib); n != len(b) || err != nil || b[0] != 5 || b[40<<10-1] != 5 || b[40<<10] != 0 {
			t.Errorf("read %d, %v", n, err)
		}
		if err := c.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c.(source.Consistent).Consistency() != format.ConsistencyCrash {
			t.Error("nobody froze anything")
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := disk.ReadAt(b, 0); err == nil {
			t.Error("the disk can be read after the cut")
		}
		found := d.bitmaps("d0")
		if len(found) != 2 || found[bitmapOf(2, 0)] != "recording persistent" || found["foreign"] != "recording persistent" {
			t.Errorf("bitmaps %v", found)
		}
		d.tidy()
	})
}

func TestACutThatIsAbortedLeavesTheOldBitmapsAlone(t *testing.T) {
	cuts(t, func(t *testing.T, forget func(*features)) {
		d := newDaemon(t)
		a := d.image("a.qcow2")
		testtool.Run(t, "qemu-img", "bitmap", "--add", a, bitmapOf(1, 0))
		d.start(blockdev(a))
		m := d.machine()
		m.options.forget = forget
		c := d.freeze(m, 2, source.Base{Run: testRun(1)})
		if found := d.bitmaps("d0"); found[bitmapOf(1, 0)] != "recording persistent" || found[bitmapOf(2, 0)] != "recording persistent" {
			t.Errorf("during the cut: %v", found)
		}
		for range 2 {
			if err := c.Abort(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if found := d.bitmaps("d0"); len(found) != 1 || found[bitmapOf(1, 0)] != "recording persistent" {
			t.Errorf("afterwards: %v", found)
		}
		d.tidy()
		if c.Commit(t.Context()) == nil || c.Confirm(t.Context()) == nil {
			t.Error("an aborted cut can be committed")
		}
	})
}

func TestACutThatIsLeftKeepsAllBitmaps(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	testtool.Run(t, "qemu-img", "bitmap", "--add", a, bitmapOf(1, 0))
	d.start(blockdev(a))
	c := d.freeze(d.machine(), 2, source.Base{Run: testRun(1)})
	if err := errors.Join(c.Leave(t.Context()), c.Leave(t.Context()), c.Abort(t.Context())); err != nil {
		t.Fatal(err)
	}
	if found := d.bitmaps("d0"); len(found) != 2 {
		t.Errorf("bitmaps %v", found)
	}
	d.tidy()
}

func TestAFirstCutStartsAFamily(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	write(t, a, "write -P 6 0 4M")
	write(t, a, "write -z 1M 1M")
	d.start(blockdev(a))
	c := d.freeze(d.machine(), 2, source.Base{AddFamily: true})
	disk := c.Disks()[0]
	all, err := extent.Collect(disk.Extents(t.Context()))
	if err != nil || len(all) != 3 || !all[1].Zero || all[1].Len != mib || disk.DirtyBytes() != -1 {
		t.Errorf("extents %v, %v", all, err)
	}
	if err := errors.Join(c.Confirm(t.Context()), c.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	if found := d.bitmaps("d0"); len(found) != 1 || found[bitmapOf(2, 0)] != "recording persistent" {
		t.Errorf("bitmaps %v", found)
	}
}

func TestWhatIsLeftOfADeadRunIsTakenDown(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	testtool.Run(t, "qemu-img", "bitmap", "--add", a, bitmapOf(1, 0))
	d.start(blockdev(a))
	dead := d.freeze(d.machine(), 2, source.Base{Run: testRun(1)}).(*cut)
	// A death: the connections close, and nothing is taken down.
	dead.watch.End()
	for _, disk := range dead.disks {
		_ = disk.exported.Close()
	}
	dead.session.close()
	if err := os.WriteFile(filepath.Join(d.dir, "scratch", filePrefix(testFamily)+"1.qcow2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Recover(t.Context(), d.monitor()); err != nil {
		t.Fatal(err)
	}
	if found := d.bitmaps("d0"); len(found) != 2 {
		t.Errorf("bitmaps %v", found)
	}
	c := d.freeze(d.machine(), 3, source.Base{Run: testRun(1)})
	if err := errors.Join(c.Confirm(t.Context()), c.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	if found := d.bitmaps("d0"); len(found) != 1 || found[bitmapOf(3, 0)] != "recording persistent" {
		t.Errorf("bitmaps %v", found)
	}
	d.tidy()
	if err := Recover(t.Context(), filepath.Join(d.dir, "none")); err != nil {
		t.Errorf("a QEMU that is gone: %v", err)
	}
}

func TestTwoRunsDoNotTakeEachOtherDown(t *testing.T) {
	d := newDaemon(t)
	d.start(blockdev(d.image("a.qcow2")))
	c := d.freeze(d.machine(), 2, source.Base{AddFamily: true})
	other := d.machine()
	other.options.Monitor = d.spare()
	s, err := other.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.lock(t.Context(), time.Second); !errors.Is(err, state.ErrBusy) {
		t.Errorf("%v", err)
	}
	if err := errors.Join(c.Confirm(t.Context()), c.Abort(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestAForeignNBDServerIsLeftAlone(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	d.start(blockdev(a))
	d.must("nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": filepath.Join(d.dir, "theirs")}}})
	m := d.machine()
	d.inspect(m)
	_, err := m.Freeze(t.Context(), testRun(2), []source.Base{{Disk: "a", Family: testFamily, AddFamily: true}})
	if !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "NBD server") {
		t.Errorf("%v", err)
	}
	if len(d.bitmaps("d0")) != 0 {
		t.Errorf("bitmaps %v", d.bitmaps("d0"))
	}
	d.must("nbd-server-stop", nil) // it still was there
	d.tidy()
}

func TestADiskThatChangedSinceItWasInspectedIsNotFrozen(t *testing.T) {
	for name, change := range map[string]func(d *daemon){
		"bitmaps": func(d *daemon) {
			d.must("block-dirty-bitmap-add", map[string]any{"node": "d0", "name": bitmapOf(7, 0), "persistent": true})
		},
		"bytes": func(d *daemon) { d.must("block_resize", map[string]any{"node-name": "d0", "size": 5 * mib}) },
		"no longer": func(d *daemon) {
			d.must("block-export-del", map[string]any{"id": "guest0", "mode": "hard"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			d.start(blockdev(d.image("a.qcow2")))
			m := d.machine()
			d.inspect(m)
			change(d)
			_, err := m.Freeze(t.Context(), testRun(2), []source.Base{{Disk: "a", Family: testFamily, AddFamily: true}})
			if !errors.Is(err, source.ErrChanged) || !strings.Contains(err.Error(), name) {
				t.Errorf("%v", err)
			}
			d.tidy()
		})
	}
}

func TestAJobThatSomebodyEndsIsNoticed(t *testing.T) {
	d := newDaemon(t)
	d.start(blockdev(d.image("a.qcow2")))
	c := d.freeze(d.machine(), 2, source.Base{AddFamily: true})
	d.must("block-job-cancel", map[string]any{"device": "qb1-job-0"})
	if err := c.Confirm(t.Context()); !errors.Is(err, source.ErrGone) {
		t.Errorf("%v", err)
	}
	if err := c.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	d.tidy()
}

func TestAnExportThatSomebodyEndsIsNoticed(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	write(t, a, "write -P 1 0 4M")
	d.start(blockdev(a))
	c := d.freeze(d.machine(), 2, source.Base{AddFamily: true})
	d.must("block-export-del", map[string]any{"id": "qb1-disk-0", "mode": "hard"})
	disk := c.Disks()[0]
	if _, err := disk.ReadAt(make([]byte, mib), 0); !errors.Is(err, source.ErrGone) || !errors.Is(err, source.ErrUnusable) {
		t.Errorf("read: %v", err)
	}
	if _, err := extent.Collect(disk.Extents(t.Context())); !errors.Is(err, source.ErrGone) {
		t.Errorf("extents: %v", err)
	}
	if err := c.Confirm(t.Context()); !errors.Is(err, source.ErrGone) {
		t.Errorf("confirm: %v", err)
	}
	if err := c.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	d.tidy()
}

func TestTwoDisksOnOneFileAreRefused(t *testing.T) {
	d := newDaemon(t)
	a := filepath.Join(d.dir, "a.raw")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "raw", a, "1M")
	link := filepath.Join(d.dir, "b.raw")
	if err := os.Link(a, link); err != nil {
		t.Fatal(err)
	}
	raw := "driver=raw,file.driver=file,file.locking=off,file.filename="
	d.start(raw+a, raw+link)
	if _, err := d.machine().Inspect(t.Context()); !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "two disks on this file") {
		t.Errorf("%v", err)
	}
}

func TestBadCallsAreRefused(t *testing.T) {
	d := newDaemon(t)
	d.start(blockdev(d.image("a.qcow2")))
	m := d.machine()
	d.inspect(m)
	for what, try := range map[string]func() error{
		"no run": func() error { _, err := m.Freeze(t.Context(), [16]byte{}, nil); return err },
		"no disk": func() error {
			_, err := m.Freeze(t.Context(), testRun(2), []source.Base{{Disk: "b", Family: testFamily}})
			return err
		},
		"no base": func() error {
			_, err := m.Freeze(t.Context(), testRun(2), []source.Base{{Disk: "a", Family: testFamily, Run: testRun(1)}})
			return err
		},
	} {
		if try() == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	d.tidy()
}

func TestAReaderSeesTheDiskAsItWas(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	write(t, a, "write -P 1 0 4M")
	d.start(blockdev(a))
	c := d.freeze(d.machine(), 2, source.Base{AddFamily: true})
	defer c.Abort(context.WithoutCancel(t.Context()))
	b := make([]byte, 4*mib)
	if n, err := c.Disks()[0].ReadAt(b, 0); n != len(b) || err != nil || !bytes.Equal(b, bytes.Repeat([]byte{1}, len(b))) {
		t.Errorf("read %d, %v", n, err)
	}
	if n, err := c.Disks()[0].ReadAt(b[:10], 4*mib-3); n != 3 || err == nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// slowThaw is a freezer whose guest thaws late.
type slowThaw struct{ thaw func() }

func (s slowThaw) Freeze(context.Context) error { return nil }
func (s slowThaw) Thaw(context.Context) (source.Frozen, error) {
	s.thaw()
	return source.Frozen{}, nil
}

func TestScratchSpaceIsWatchedFromThePointInTimeOn(t *testing.T) {
	d := newDaemon(t)
	d.start(blockdev(d.image("a.qcow2")))
	m := d.machine()
	dir := m.options.ScratchDir
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	jobs := -1
	m.options.Freezer = slowThaw{func() {
		if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 30*mib), 0o600); err != nil {
			t.Error(err)
		}
		for deadline := time.Now().Add(5 * time.Second); jobs != 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			var list []jobInfo
			if err := d.ask("query-jobs", nil, &list); err != nil {
				t.Error(err)
			}
			jobs = len(slices.DeleteFunc(list, func(j jobInfo) bool { return j.Status == jobConcluded }))
		}
	}}
	d.inspect(m)
	_, err := m.Freeze(t.Context(), testRun(1), []source.Base{{Disk: "a", Family: testFamily, AddFamily: true}})
	if !errors.Is(err, source.ErrScratch) {
		t.Errorf("freeze: %v", err)
	}
	if jobs != 0 {
		t.Error("the job went on without room for what the guest overwrites")
	}
	if got := d.bitmaps("d0"); len(got) != 0 {
		t.Errorf("bitmaps %v", got)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	d.tidy()
}

func TestABitmapThatStoppedRecordingSinceItWasInspectedIsNotContinued(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	testtool.Run(t, "qemu-img", "bitmap", "--add", a, bitmapOf(1, 0))
	d.start(blockdev(a))
	m := d.machine()
	d.inspect(m)
	d.must("block-dirty-bitmap-disable", map[string]any{"node": "d0", "name": bitmapOf(1, 0)})
	c, err := m.Freeze(t.Context(), testRun(2), []source.Base{{Disk: "a", Run: testRun(1), Family: testFamily}})
	if err == nil {
		_ = c.Abort(t.Context())
	}
	if !errors.Is(err, source.ErrChanged) || !strings.Contains(err.Error(), "bitmaps") {
		t.Errorf("%v", err)
	}
	d.tidy()
}

// A QEMU that stands still, such as on storage that has gone, answers nothing. That
// must not keep an operator from ending the backup.
func TestAReadFromAQEMUThatStandsStillCanBeInterrupted(t *testing.T) {
	d := newDaemon(t)
	d.start(blockdev(d.image("a.qcow2")))
	m := d.machine()
	d.inspect(m)
	ctx, cancel := context.WithCancel(t.Context())
	c, err := m.Freeze(ctx, testRun(1), []source.Base{{Disk: "a", Family: testFamily, AddFamily: true}})
	if err != nil {
		t.Fatal(err)
	}
	_ = d.process.Signal(syscall.SIGSTOP)
	defer d.process.Signal(syscall.SIGCONT)
	read := make(chan error, 1)
	go func() {
		_, err := c.Disks()[0].ReadAt(make([]byte, mib), 0)
		read <- err
	}()
	time.AfterFunc(50*time.Millisecond, cancel)
	select {
	case err := <-read:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("read: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the read goes on")
	}
	_ = d.process.Signal(syscall.SIGCONT)
	if err := c.Abort(ctx); err != nil || m.Left() {
		t.Errorf("abort: %v", err)
	}
	d.tidy()
}
