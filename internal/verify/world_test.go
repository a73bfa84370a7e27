package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testBlock = format.MinBlockBytes

// world is a repository, and what its disks held at each point.
type world struct {
	t        testing.TB
	mem      *mem.Store
	random   *rand.ChaCha8
	now      time.Time
	repo     *repo.Repository
	machines map[ident.MachineName]format.Machine
	points   map[ident.RunID]map[string][]byte // by disk
	zeros    map[lostRange]bool                // see isZero
}

// newWorld makes a repository with fixed ids and times.
func newWorld(t testing.TB) *world {
	w := &world{
		t: t, mem: mem.New(), random: rand.NewChaCha8([32]byte{1}), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		machines: map[ident.MachineName]format.Machine{}, points: map[ident.RunID]map[string][]byte{}, zeros: map[lostRange]bool{},
	}
	r, _, err := repo.Init(context.Background(), w.mem, repo.InitOptions{Options: w.options(), BlockBytes: testBlock, Tool: "test"})
	if err != nil {
		t.Fatal(err)
	}
	w.repo = r
	return w
}

func (w *world) options() repo.Options { return repo.Options{Clock: w.clock, Random: w.random} }

// clock goes on by a second with each look.
func (w *world) clock() time.Time {
	w.now = w.now.Add(time.Second)
	return w.now
}

// open opens the repository anew, with empty caches.
func (w *world) open() *repo.Repository {
	w.t.Helper()
	r, err := repo.Open(context.Background(), w.mem, w.options())
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	return r
}

func (w *world) machine(name ident.MachineName) format.Machine {
	w.t.Helper()
	if m, ok := w.machines[name]; ok {
		return m
	}
	id, err := ident.NewMachineID(w.random)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := w.repo.CreateMachine(context.Background(), format.Machine{Name: name, ID: id, Created: w.clock(), FirstHost: "host1"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.machines[name] = m
	return m
}

// change is neighbouring blocks of data made from a seed, or zeros.
type change struct {
	first, count int64
	seed         uint64 // 0: zeros
}

// diskSpec is what a run does with a disk. Ordinals are given by the order.
type diskSpec struct {
	name      string
	sizeBytes int64
	missing   bool
	fromBase  bool // the map starts from the base's
	changes   []change
}

// content gives the bytes of a block. A quarter of it does not compress.
func content(block int64, seed uint64) []byte {
	b := make([]byte, testBlock)
	if seed != 0 {
		key := [32]byte{}
		binary.LittleEndian.PutUint64(key[:], seed)
		binary.LittleEndian.PutUint64(key[8:], uint64(block))
		_, _ = rand.NewChaCha8(key).Read(b[:256])
	}
	return b
}

// attempt is a run under way.
type attempt struct {
	*world
	run    *repo.Run
	base   *repo.Point
	record *format.Record
	disks  map[string][]byte

	pack   *format.PackWriter
	seq    uint32
	frames int
}

func (w *world) begin(machine ident.MachineName, base ident.RunID) *attempt {
	w.t.Helper()
	ctx := context.Background()
	m := w.machine(machine)
	a := &attempt{world: w, disks: map[string][]byte{}}
	spec := repo.IntentSpec{Machine: machine, MachineID: m.ID, Host: "host1", BootID: "boot1", Tool: "test"}
	var err error
	if !base.IsZero() {
		if a.base, err = w.repo.OpenPoint(ctx, machine, base); err != nil {
			w.t.Fatal(err)
		}
		spec.Bases = []format.Base{{Disk: "root", Run: base}}
	}
	if a.run, err = w.repo.Begin(ctx, spec); err != nil {
		w.t.Fatal(err)
	}
	return a
}

// upload stores the disks in packs of at most three frames and seals the run.
func (a *attempt) upload(disks ...diskSpec) {
	a.t.Helper()
	ctx := context.Background()
	a.record = &format.Record{Time: a.clock(), Started: a.now, Consistency: format.ConsistencyOffline, Host: "host1", Tool: "test"}
	for i, d := range disks {
		rec := format.DiskRecord{Name: d.name, Ordinal: i, Mode: format.ModeFull, SizeBytes: d.sizeBytes}
		if d.missing {
			rec.Mode, rec.Error = format.ModeMissing, "it was unplugged"
		} else {
			rec.Map = a.disk(ctx, i, d)
		}
		a.record.Disks = append(a.record.Disks, rec)
	}
	a.flush(ctx)
	var deps []format.Dependency
	if a.base != nil {
		deps = a.base.Dependencies()
	}
	if _, err := a.run.Seal(ctx, deps); err != nil {
		a.t.Fatal(err)
	}
}

func (a *attempt) disk(ctx context.Context, ordinal int, d diskSpec) format.MapRoot {
	a.t.Helper()
	content := make([]byte, d.sizeBytes)
	a.disks[d.name] = content
	var root *format.MapRoot
	var baseBlocks int64
	if d.fromBase {
		was := a.base.Record().Disk(d.name)
		root, baseBlocks = &was.Map, format.Blocks(was.SizeBytes, testBlock)
		copy(content, a.points[a.base.Record().Run][d.name])
	}
	b, err := blockmap.NewBuilder(root, baseBlocks, format.Blocks(d.sizeBytes, testBlock), a.repo.Nodes(a.run.Identity().Machine), a.run.Sink())
	if err != nil {
		a.t.Fatal(err)
	}
	for _, c := range d.changes {
		for block := c.first; block < c.first+c.count; {
			n := min(c.first+c.count-block, 4-block%4)
			a.frame(ctx, b, ordinal, content, block, n, c.seed)
			block += n
		}
	}
	out, err := b.Finish(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// frame stores neighbouring blocks.
func (a *attempt) frame(ctx context.Context, b *blockmap.Builder, ordinal int, disk []byte, block, n int64, seed uint64) {
	a.t.Helper()
	var raw []byte
	f := format.Frame{Disk: uint16(ordinal), FirstBlock: block}
	for i := range n {
		bytes := content(block+i, seed)
		if end := (block + i + 1) * testBlock; end > int64(len(disk)) {
			clear(bytes[testBlock-(end-int64(len(disk))):])
		}
		copy(disk[(block+i)*testBlock:], bytes)
		raw = append(raw, bytes...)
		f.Hashes = append(f.Hashes, a.repo.Hasher().Sum(bytes))
	}
	if a.pack == nil {
		id := a.run.Identity()
		a.pack = format.NewPackWriter(format.PackHeader{Repository: id.Repository, MachineID: id.MachineID, Run: id.Run, Seq: a.seq, BlockBytes: testBlock}, 1<<20)
	}
	span := blockmap.Span{First: block, Count: n, Zero: seed == 0}
	var err error
	if seed == 0 {
		err = a.pack.AppendZero(uint16(ordinal), block, n)
	} else {
		f.Compressed = a.repo.Codec().Compress(nil, raw)
		span.Loc = format.Location{Run: a.run.ID(), Pack: a.seq}
		span.Loc.Ordinal, err = a.pack.AppendFrame(f)
	}
	if err == nil {
		err = b.Set(ctx, span)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	if a.frames++; a.frames == 3 {
		a.flush(ctx)
	}
}

func (a *attempt) flush(ctx context.Context) {
	a.t.Helper()
	if a.pack == nil {
		return
	}
	p, err := a.pack.Seal()
	if err == nil {
		err = a.run.PutPack(ctx, p)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.pack, a.frames = nil, 0
	a.seq++
}

func (a *attempt) publish() ident.RunID {
	a.t.Helper()
	if err := a.run.Publish(context.Background(), a.record); err != nil {
		a.t.Fatal(err)
	}
	a.points[a.run.ID()] = a.disks
	return a.run.ID()
}

// backup makes a point.
func (w *world) backup(machine ident.MachineName, base ident.RunID, disks ...diskSpec) ident.RunID {
	w.t.Helper()
	a := w.begin(machine, base)
	a.upload(disks...)
	return a.publish()
}

func (w *world) put(key string, body []byte, err error) {
	w.t.Helper()
	if err == nil {
		err = w.mem.Put(context.Background(), key, store.NewBody(body), store.PutOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) identity(machine ident.MachineName, run ident.RunID) format.Identity {
	return format.Identity{Repository: w.repo.ID(), Machine: machine, MachineID: w.machines[machine].ID, Run: run}
}

// forget puts a tombstone.
func (w *world) forget(machine ident.MachineName, run ident.RunID) {
	w.t.Helper()
	body, err := format.AppendMark(nil, format.KindTombstone, &format.Mark{Identity: w.identity(machine, run), Nonce: format.Nonce{1}, By: "test", Time: w.clock()})
	w.put(format.TombstoneKey(machine, run, 0), body, err)
	delete(w.points, run)
}

func (w *world) get(key string) []byte {
	w.t.Helper()
	b, err := store.ReadAll(context.Background(), w.mem, key, format.MaxObjectBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// keys lists all objects that are known to the format.
func (w *world) keys(kinds ...format.KeyKind) (keys []string) {
	w.t.Helper()
	for info, err := range w.mem.List(context.Background(), "") {
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
		if err := w.mem.Delete(context.Background(), []string{key}); err != nil {
			w.t.Fatal(err)
		}
	} else {
		w.mem.Replace(key, b)
	}
	return func() { w.mem.Replace(key, old) }
}

func flipped(b []byte, at int, bit int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1 << bit
	return c
}

func (w *world) verify(o Options) *Report {
	w.t.Helper()
	o.Clock = w.clock
	report, err := Run(context.Background(), w.open(), o)
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
	r := w.open()
	for run, disks := range w.points {
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
		zero = len(bytes.Trim(w.points[run][disk][off:off+n], "\x00")) == 0
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
	_, err := repo.Open(context.Background(), w.mem, w.options())
	return err
}

func extentAt(off int64) extent.Extent { return extent.Extent{Off: off, Len: 1} }
