package offline

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/testtool"
)

var errBroken = errors.New("the disk under the image is broken")

// brittle is a file of which some writes fail.
type brittle struct {
	qcow2.File
	writes int
	fails  func(write int) bool
}

func (b *brittle) WriteAt(p []byte, off int64) (int, error) {
	b.writes++
	if b.fails(b.writes) {
		return 0, errBroken
	}
	return b.File.WriteAt(p, off)
}

// brittleMachine makes a machine on a file of which some writes fail.
func brittleMachine(path string, fails func(write int) bool) (*Machine, *brittle) {
	b := &brittle{fails: fails}
	return one(path, Options{OpenFile: func(path string, flags int) (*os.File, qcow2.File, error) {
		f, content, err := openOSFile(path, flags)
		b.File = content
		return f, b, err
	}}), b
}

func TestACommitIsRepeatedWithinItsCut(t *testing.T) {
	m, b := brittleMachine(twoBitmaps(t), func(int) bool { return false })
	finish(t, cutOf(t, m, 3, 1))
	if b.writes == 0 {
		t.Fatal("nothing was written through the seam")
	}
	for broken := 1; broken <= b.writes; broken++ {
		path := twoBitmaps(t)
		m, _ := brittleMachine(path, func(write int) bool { return write == broken })
		finish(t, cutOf(t, m, 3, 1))
		if got, want := bitmaps(t, path), bitmapName(t, 3, 0)+" recording"; got != want {
			t.Errorf("write %d failed: bitmaps %s, want %s", broken, got, want)
		}
		if got := inspectGood(t, one(path, Options{})).Disks[0].Bitmaps[0].DirtyBytes; got != 0 {
			t.Errorf("write %d failed: %d bytes dirty", broken, got)
		}
		if out, code := testtool.Try(t, "qemu-img", "check", path); code != 0 && code != 3 {
			t.Errorf("write %d failed: qemu-img check: exit %d\n%s", broken, code, out)
		}
	}
}

func TestACommitThatFailsLeavesEnoughBits(t *testing.T) {
	for from := 1; from <= 5; from++ {
		path := twoBitmaps(t)
		m, _ := brittleMachine(path, func(write int) bool { return write >= from })
		c := cutOf(t, m, 3, 1)
		if err := c.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := c.Commit(t.Context())
		if err == nil {
			break // the edit has fewer writes than that
		}
		var left *source.NotReset
		if !errors.As(err, &left) || !errors.Is(err, errBroken) || left.Disks[0].Disk != "vda" {
			t.Errorf("writes fail from %d on: %v", from, err)
		}
		if !canOpen(t, path) {
			t.Errorf("writes fail from %d on: QEMU does not open the image", from)
		}
		// Nothing was written since, so the next run has to find at least
		// nothing; what matters is that it works by itself.
		e := inspectGood(t, one(path, Options{})).Disks[0]
		if len(e.Bitmaps) == 0 || !e.BitmapsUsable {
			t.Errorf("writes fail from %d on: %+v", from, e)
		}
		finish(t, cutOf(t, one(path, Options{}), 4, 0))
		if got, want := bitmaps(t, path), bitmapName(t, 4, 0)+" recording"; got != want {
			t.Errorf("writes fail from %d on: bitmaps %s, want %s", from, got, want)
		}
	}
}

func TestTheOtherDisksAreResetWhenOneCannotBe(t *testing.T) {
	a, b := twoBitmaps(t), twoBitmaps(t)
	images := []Image{{Name: "vda", Path: a}, {Name: "vdb", Path: b}}
	c := cutOf(t, New(images, Options{Family: testFamily}), 3, 1)
	reader := hold(t, a, "-r")
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	var left *source.NotReset
	if err := c.Commit(t.Context()); !errors.As(err, &left) || len(left.Disks) != 1 || left.Disks[0].Disk != "vda" {
		t.Errorf("got %v", err)
	}
	reader.release(t)
	if got, want := bitmaps(t, b), bitmapName(t, 3, 0)+" recording"; got != want {
		t.Errorf("bitmaps %s, want %s", got, want)
	}
	if got := bitmaps(t, a); strings.Contains(got, fmt.Sprint(testRun(t, 3))) {
		t.Errorf("bitmaps %s", got)
	}
}

func TestAConversionAtCommitTimeGoesOn(t *testing.T) {
	path := newImage(t, "16M")
	addBitmap(t, path, bitmapName(t, 1, 0))
	qemuIO(t, path, "write -P 3 0 6M")
	c := cutOf(t, one(path, Options{}), 2, 1)
	// A slow conversion: 4 MiB in each second.
	done := make(chan int, 1)
	target := path + ".copy"
	go func() {
		_, code := testtool.Try(t, "qemu-img", "convert", "-r", "4M", "-O", "raw", path, target)
		done <- code
	}()
	for range 500 {
		if len(lockedBytes(t, openLocks(t, path).f)) > 1 {
			break
		}
	}
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(t.Context()); !errors.Is(err, source.ErrReaders) {
		t.Errorf("got %v", err)
	}
	if code := <-done; code != 0 {
		t.Errorf("qemu-img convert: exit %d", code)
	}
	finish(t, cutOf(t, one(path, Options{}), 2, 1))
}
