package repo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
)

const testSize = 200*testBlock + 1234

// threePoints is a full and two increments; the last has data of all three runs.
func threePoints(w *world) []*Point {
	one := w.backup(nil, testSize, change{0, 40, 1}, change{100, 101, 2})
	two := w.backup(one, testSize, change{5, 3, 3}, change{30, 50, 0}, change{150, 1, 3})
	three := w.backup(two, testSize+20*testBlock, change{0, 1, 4}, change{39, 2, 4}, change{200, 20, 4})
	return []*Point{one, two, three}
}

func TestEveryPointRestoresByteForByte(t *testing.T) {
	w := newWorld(t)
	points := threePoints(w)
	w.reopen()
	for _, p := range points {
		w.check(p.record.Run)
	}
}

func TestReadsOfAnyRangeAgreeWithTheWhole(t *testing.T) {
	w := newWorld(t)
	run := threePoints(w)[2].record.Run
	want := w.points[run]
	d := w.diskOf(run)
	edges := []int64{0, 1, testBlock - 1, testBlock, testBlock + 1, 5 * testBlock, 16*testBlock - 1, 16 * testBlock, 30*testBlock - 7, 100 * testBlock, 150*testBlock + 3, testSize - 1, testSize, d.Size() - 1, d.Size()}
	for _, off := range edges {
		for _, n := range []int64{0, 1, 511, testBlock, testBlock + 1, 17 * testBlock, 150 * testBlock, d.Size()} {
			p := bytes.Repeat([]byte{0xEE}, int(n))
			got, err := d.ReadAt(p, off)
			expect := min(n, d.Size()-off)
			if wantEOF := off+n > d.Size() || off == d.Size(); wantEOF != errors.Is(err, io.EOF) || err != nil && !errors.Is(err, io.EOF) || int64(got) != expect {
				t.Fatalf("read %d+%d: %d, %v", off, n, got, err)
			}
			if !bytes.Equal(p[:got], want[off:off+int64(got)]) {
				t.Fatalf("read %d+%d gives other bytes", off, n)
			}
		}
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); !errors.Is(err, ErrRange) {
		t.Errorf("read at -1: %v", err)
	}
}

func TestParallelReadsAgree(t *testing.T) {
	w := newWorld(t)
	run := threePoints(w)[2].record.Run
	w.reopen()
	d := w.diskOf(run)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 60 {
				off := r.Int64N(d.Size())
				p := make([]byte, r.Int64N(min(d.Size()-off, 30*testBlock))+1)
				if _, err := d.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("read: %v", err)
				}
				if n := min(int64(len(p)), d.Size()-off); !bytes.Equal(p[:n], w.points[run][off:off+n]) {
					t.Errorf("read %d+%d gives other bytes", off, n)
				}
			}
		})
	}
	wg.Wait()
}

func TestNeighbouringFramesComeWithOneRequest(t *testing.T) {
	w := newWorld(t)
	p := w.backup(nil, 64*testBlock, change{0, 64, 1})
	counted := fault.New(w.mem, 1)
	w.store = counted
	w.reopen()
	d := w.diskOf(p.record.Run)
	if _, err := d.ReadAt(make([]byte, 16*testBlock), 0); err != nil {
		t.Fatal(err)
	}
	before := counted.Calls(fault.Get)
	if _, err := d.ReadAt(make([]byte, 64*testBlock), 0); err != nil {
		t.Fatal(err)
	}
	if got := counted.Calls(fault.Get) - before; got != 1 {
		t.Errorf("64 blocks of one pack took %d requests", got)
	}
}

func TestSmallReadsOfOneFrameFetchItOnce(t *testing.T) {
	w := newWorld(t)
	p := w.backup(nil, 64*testBlock, change{0, 64, 1})
	counted := fault.New(w.mem, 1)
	w.store = counted
	w.reopen()
	d := w.diskOf(p.record.Run)
	read := func(off int64) {
		b := make([]byte, 4096)
		if _, err := d.ReadAt(b, off); err != nil || !bytes.Equal(b, w.points[p.record.Run][off:off+4096]) {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	read(0)
	before := counted.Calls(fault.Get)
	for off := int64(0); off < 16*testBlock; off += 4096 {
		read(off)
	}
	if got := counted.Calls(fault.Get) - before; got != 0 {
		t.Errorf("a frame was fetched %d times again", got)
	}
}

func TestExtentsCoverTheRangeAndMarkZeros(t *testing.T) {
	w := newWorld(t)
	p := threePoints(w)[1]
	d := w.diskOf(p.record.Run)
	got, err := extent.Collect(d.Extents(context.Background(), 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	want := []extent.Extent{
		{Off: 0, Len: 30 * testBlock}, {Off: 30 * testBlock, Len: 70 * testBlock, Zero: true}, {Off: 100 * testBlock, Len: testSize - 100*testBlock},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got, err = extent.Collect(d.Extents(context.Background(), 30*testBlock-5, 10))
	if err != nil || !slices.Equal(got, []extent.Extent{{Off: 30*testBlock - 5, Len: 5}, {Off: 30 * testBlock, Len: 5, Zero: true}}) {
		t.Errorf("around an edge: %v, %v", got, err)
	}
	if got, err := extent.Collect(d.Extents(context.Background(), 5, 0)); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	if _, err := extent.Collect(d.Extents(context.Background(), 5, d.Size())); !errors.Is(err, ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
}

func TestDamagedPackNamesObjectAndLostRangesOnly(t *testing.T) {
	w := newWorld(t)
	p := threePoints(w)[1]
	run := p.record.Run
	first := p.record.Disk("root").Base
	key := format.PackKey(testMachine, first, 0)
	defer w.flip(key, format.PackHeaderBytes+200)()
	w.reopen()
	d := w.diskOf(run)
	_, err := d.ReadAt(make([]byte, d.Size()), 0)
	var damage *Damage
	if !errors.As(err, &damage) || !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v", err)
	}
	if damage.Key != key || damage.Disk != "root" || damage.Offset != format.PackHeaderBytes {
		t.Errorf("damage %+v", damage)
	}
	// Blocks 5 to 7 of the frame were stored again by the second run.
	if want := []extent.Extent{{Off: 0, Len: 5 * testBlock}, {Off: 8 * testBlock, Len: 8 * testBlock}}; !slices.Equal(damage.Extents, want) {
		t.Errorf("lost %v, want %v", damage.Extents, want)
	}
	if !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "root") {
		t.Errorf("message %q", err)
	}
	b := make([]byte, 3*testBlock)
	if _, err := d.ReadAt(b, 5*testBlock); err != nil || !bytes.Equal(b, w.points[run][5*testBlock:8*testBlock]) {
		t.Errorf("what is not damaged cannot be read: %v", err)
	}
}

func TestBytesSpoiledOnTheWayAreReadAgain(t *testing.T) {
	w := newWorld(t)
	run := threePoints(w)[2].record.Run
	for _, part := range []string{"p", "m", "manifest"} {
		for from := 1; from <= 3; from++ {
			w.store = fault.New(w.mem, 1, fault.Rule{Verb: fault.Get, Prefix: format.DataPrefix(testMachine, run) + part, From: from, Kind: fault.Garble})
			w.reopen()
			if err := w.compare(run); err != nil {
				t.Errorf("answer %d of %s spoiled once: %v", from, part, err)
			}
		}
	}
}

func TestAStoreThatCannotBeAskedIsNotDamage(t *testing.T) {
	w := newWorld(t)
	run := threePoints(w)[2].record.Run
	for n := 1; ; n++ {
		w.store = w.mem
		w.reopen()
		broken := fault.New(w.mem, 1, fault.Down(n))
		w.repo.store = broken
		err := w.compare(run)
		if err == nil {
			if n < 8 {
				t.Fatalf("a restore took %d calls", n)
			}
			return
		}
		if errors.Is(err, ErrDamaged) || !errors.Is(err, store.ErrUnreachable) {
			t.Fatalf("down from call %d on: %v", n, err)
		}
	}
}

func TestAnyObjectThatIsLostOrSpoiledIsDamageThatNamesIt(t *testing.T) {
	w := newWorld(t)
	run := threePoints(w)[2].record.Run
	ctx := context.Background()
	for _, key := range append(w.keys("data/"), format.PointKey(testMachine, run)) {
		whole, err := store.ReadAll(ctx, w.mem, key, format.MaxObjectBytes)
		if err != nil {
			t.Fatal(err)
		}
		for name, spoiled := range map[string][]byte{"empty": {}, "half": whole[:len(whole)/2], "swapped": bytes.Repeat([]byte{7}, len(whole))} {
			w.mem.Replace(key, spoiled)
			w.reopen()
			err := w.compare(run)
			if _, used := w.points[run]; used && err != nil {
				damage, ok := asDamage(err)
				if !ok || !strings.HasPrefix(damage.Key, key) {
					t.Errorf("%s %s: %v", key, name, err)
				}
			} else if strings.Contains(key, run.String()) {
				t.Errorf("%s %s: not noticed", key, name)
			}
		}
		w.mem.Replace(key, whole)
	}
	w.reopen()
	w.check(run)
}

func TestCancelledReadsEnd(t *testing.T) {
	w := newWorld(t)
	d := w.diskOf(threePoints(w)[2].record.Run)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.ReadAtContext(ctx, make([]byte, d.Size()), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
