package verify

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/repo/repotest"
	"github.com/qbackup/qbackup/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testBlock = repotest.Block

// world is a repository, and what its disks held at each point.
type world struct {
	*repotest.World
	t     testing.TB
	zeros map[lostRange]bool // see isZero
}

func newWorld(t testing.TB) *world {
	return &world{World: repotest.New(t), t: t, zeros: map[lostRange]bool{}}
}

type diskSpec = repotest.DiskSpec

// forget puts a tombstone.
func (w *world) forget(machine ident.MachineName, run ident.RunID) {
	w.t.Helper()
	body, err := format.AppendMark(nil, format.KindTombstone, &format.Mark{Identity: w.Identity(machine, run), Nonce: format.Nonce{1}, By: "test", Time: w.Clock()})
	w.Put(format.TombstoneKey(machine, run, 0), body, err)
	delete(w.Points, run)
}

func (w *world) get(key string) []byte {
	w.t.Helper()
	b, err := store.ReadAll(context.Background(), w.Mem, key, format.MaxObjectBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// keys lists all objects that are known to the format.
func (w *world) keys(kinds ...format.KeyKind) (keys []string) {
	w.t.Helper()
	for info, err := range w.Mem.List(context.Background(), "") {
		if err != nil {
			w.t.Fatal(err)
		}
		key, err := format.ParseKey(info.Key)
		if err != nil {
			continue
		}
		for _, k := range kinds {
			if key.Kind == k {
				keys = append(keys, info.Key)
			}
		}
	}
	return keys
}

// spoil replaces the bytes of an object, nil removes it, until undo is called.
func (w *world) spoil(key string, b []byte) (undo func()) {
	w.t.Helper()
	old := w.get(key)
	if b == nil {
		if err := w.Mem.Delete(context.Background(), []string{key}); err != nil {
			w.t.Fatal(err)
		}
	} else {
		w.Mem.Replace(key, b)
	}
	return func() { w.Mem.Replace(key, old) }
}

func flipped(b []byte, at int, bit int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1 << bit
	return c
}

func (w *world) verify(o Options) *Report {
	w.t.Helper()
	o.Clock = w.Clock
	report, err := Run(context.Background(), w.Open(), o)
	if err != nil {
		w.t.Fatalf("verify: %v", err)
	}
	return report
}

// lostRange is a range of a disk of a point that cannot be read.
type lostRange struct {
	run       ident.RunID
	disk      string
	off, size int64
}

// truth reads every block of every disk of every point and gives what cannot be read. What can be read must be right.
// Points that cannot be opened are given with disk "".
func (w *world) truth() (all []lostRange) {
	w.t.Helper()
	ctx := context.Background()
	r := w.Open()
	for run, disks := range w.Points {
		machine := ident.MachineName("web1")
		if disks["only"] != nil {
			machine = "db"
		}
		p, err := r.OpenPoint(ctx, machine, run)
		if errors.Is(err, repo.ErrDamaged) {
			all = append(all, lostRange{run: run})
			continue
		}
		if err != nil {
			w.t.Fatalf("open point: %v", err)
		}
		for name, want := range disks {
			d, err := p.Disk(name)
			if err != nil {
				w.t.Fatalf("open disk: %v", err)
			}
			for off := int64(0); off < int64(len(want)); off += zeroChunk {
				n := min(zeroChunk, int64(len(want))-off)
				if w.isZero(run, name, off, n) && readsAsZero(ctx, d, off, n) {
					continue
				}
				all = append(all, w.readBlocks(ctx, lostRange{run, name, off, n}, d, want)...)
			}
		}
	}
	return all
}

// zeroChunk is what is looked at in one go where a disk is zero.
const zeroChunk = 64 * testBlock

// isZero tells whether a range of a disk is zero; asked again, it remembers.
func (w *world) isZero(run ident.RunID, disk string, off, n int64) bool {
	key := lostRange{run, disk, off, n}
	zero, known := w.zeros[key]
	if !known {
		zero = len(bytes.Trim(w.Points[run][disk][off:off+n], "\x00")) == 0
		w.zeros[key] = zero
	}
	return zero
}

func readsAsZero(ctx context.Context, d *repo.Disk, off, n int64) bool {
	for e, err := range d.Extents(ctx, off, n) {
		if err != nil || !e.Zero {
			return false
		}
	}
	return true
}

// readBlocks reads a range of a disk block by block and gives what cannot be read.
func (w *world) readBlocks(ctx context.Context, part lostRange, d *repo.Disk, want []byte) (all []lostRange) {
	w.t.Helper()
	got := make([]byte, testBlock)
	for off := part.off; off < part.off+part.size; off += testBlock {
		b := got[:min(testBlock, int64(len(want))-off)]
		_, err := d.ReadAtContext(ctx, b, off)
		switch {
		case errors.Is(err, repo.ErrDamaged):
			all = append(all, lostRange{part.run, part.disk, off, int64(len(b))})
		case err != nil:
			w.t.Fatalf("read %s at %d: %v", part.disk, off, err)
		case !bytes.Equal(b, want[off:off+int64(len(b))]):
			w.t.Fatalf("disk %s of %s at %d: wrong bytes were given out", part.disk, part.run, off)
		}
	}
	return all
}

func openError(w *world) error {
	_, err := repo.Open(context.Background(), w.Mem, w.Options())
	return err
}

func extentAt(off int64) extent.Extent { return extent.Extent{Off: off, Len: 1} }
