package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testMachine = ident.MachineName("web1")
	testBlock   = format.MinBlockBytes
)

// world is a repository with one machine of one disk, and what the disk held at
// each point.
type world struct {
	t       testing.TB
	mem     *mem.Store
	store   store.Store // what the repository uses; the same as mem unless a test puts something between
	random  *rand.ChaCha8
	now     time.Time
	cache   *IndexCache
	repo    *Repository
	machine format.Machine
	disk    []byte // as it is now
	points  map[ident.RunID][]byte
}

// newWorld makes a repository with fixed ids and times.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := emptyWorld(t)
	w.make()
	return w
}

// emptyWorld is a world without a repository.
func emptyWorld(t testing.TB) *world {
	w := &world{t: t, mem: mem.New(), random: rand.NewChaCha8([32]byte{1}), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), points: map[ident.RunID][]byte{}}
	w.store = w.mem
	return w
}

func (w *world) make() {
	w.t.Helper()
	ctx := context.Background()
	r, created, err := Init(ctx, w.store, InitOptions{Options: w.options(), BlockBytes: testBlock, Tool: "test"})
	if err != nil || !created {
		w.t.Fatalf("init: %v, %v", created, err)
	}
	w.repo = r
	id, err := ident.NewMachineID(w.random)
	if err != nil {
		w.t.Fatal(err)
	}
	w.machine, err = r.CreateMachine(ctx, format.Machine{Name: testMachine, ID: id, Created: w.now, FirstHost: "host1"})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) options() Options {
	return Options{Cache: w.cache, Clock: w.clock, Random: w.random}
}

// clock goes on by a second with each look.
func (w *world) clock() time.Time {
	w.now = w.now.Add(time.Second)
	return w.now
}

// reopen opens the repository anew, with empty caches in memory.
func (w *world) reopen() *Repository {
	w.t.Helper()
	r, err := Open(context.Background(), w.store, w.options())
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	w.repo = r
	return r
}

// change is what a run writes: neighbouring blocks of data made from a seed, or
// zeros.
type change struct {
	first, count int64
	seed         uint64 // 0: zeros
}

// content gives the bytes of a block of a change. Half of it does not compress.
func content(block int64, seed uint64) []byte {
	b := make([]byte, testBlock)
	if seed == 0 {
		return b
	}
	key := [32]byte{}
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(block))
	_, _ = rand.NewChaCha8(key).Read(b[:testBlock/2])
	return b
}

// attempt is a run under way.
type attempt struct {
	w      *world
	run    *Run
	base   *Point
	record *format.Record
	disk   []byte // as the point will have it
}

// begin starts a run on the newest point, or on none.
func (w *world) begin(ctx context.Context, base *Point) (*attempt, error) {
	spec := IntentSpec{Machine: testMachine, MachineID: w.machine.ID, Host: "host1", BootID: "boot1", Tool: "test"}
	if base != nil {
		spec.Bases = []format.Base{{Disk: "root", Run: base.record.Run}}
	}
	run, err := w.repo.Begin(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &attempt{w: w, run: run, base: base}, nil
}

// upload stores the changes of a disk that is now of sizeBytes, packs of at most
// four frames each, and seals the run.
func (a *attempt) upload(ctx context.Context, sizeBytes int64, changes ...change) error {
	a.disk = make([]byte, sizeBytes)
	root, baseBlocks, mode, base := (*format.MapRoot)(nil), int64(0), format.ModeFull, ident.RunID{}
	if a.base != nil {
		d := a.base.record.Disk("root")
		root, baseBlocks, mode, base = &d.Map, format.Blocks(d.SizeBytes, testBlock), format.ModeIncremental, a.base.record.Run
		copy(a.disk, a.w.points[base])
	}
	blocks := format.Blocks(sizeBytes, testBlock)
	b, err := blockmap.NewBuilder(root, baseBlocks, blocks, a.w.repo.Nodes(testMachine), a.run.Sink())
	if err != nil {
		return err
	}
	p := &packer{a: a, b: b}
	for _, c := range changes {
		if err := p.add(ctx, c); err != nil {
			return err
		}
	}
	if err := p.flush(ctx); err != nil {
		return err
	}
	d := format.DiskRecord{Name: "root", Mode: mode, Base: base, SizeBytes: sizeBytes}
	if d.Map, err = b.Finish(ctx); err != nil {
		return err
	}
	var deps []format.Dependency
	if a.base != nil {
		deps = a.base.Dependencies()
	}
	if _, err := a.run.Seal(ctx, deps); err != nil {
		return err
	}
	a.record = &format.Record{Time: a.w.clock(), Started: a.w.now, Consistency: format.ConsistencyOffline, Disks: []format.DiskRecord{d}, Host: "host1", Tool: "test"}
	return nil
}

// packer makes packs as an upload does, without its speed.
type packer struct {
	a    *attempt
	b    *blockmap.Builder
	w    *format.PackWriter
	seq  uint32
	size int // frames in the pack
}

func (p *packer) add(ctx context.Context, c change) error {
	for block := c.first; block < c.first+c.count; {
		n := min(c.first+c.count-block, 16-block%16)
		if err := p.frame(ctx, block, n, c.seed); err != nil {
			return err
		}
		block += n
	}
	return nil
}

func (p *packer) frame(ctx context.Context, block, n int64, seed uint64) error {
	var raw []byte
	f := format.Frame{FirstBlock: block}
	for i := range n {
		b := content(block+i, seed)
		at := (block + i) * testBlock
		copy(p.a.disk[at:], b)
		if end := at + testBlock; end > int64(len(p.a.disk)) {
			clear(b[int64(len(p.a.disk))-at:])
		}
		raw = append(raw, b...)
		f.Hashes = append(f.Hashes, p.a.w.repo.Hasher().Sum(b))
	}
	if seed == 0 {
		return p.b.Set(ctx, blockmap.Span{First: block, Count: n, Zero: true})
	}
	f.Compressed = p.a.w.repo.Codec().Compress(nil, raw)
	if p.w == nil {
		id := p.a.run.Identity()
		p.w = format.NewPackWriter(format.PackHeader{Repository: id.Repository, MachineID: id.MachineID, Run: id.Run, Seq: p.seq, BlockBytes: testBlock}, 4<<20)
	}
	ordinal, err := p.w.AppendFrame(f)
	if err != nil {
		return err
	}
	err = p.b.Set(ctx, blockmap.Span{First: block, Count: n, Loc: format.Location{Run: p.a.run.ID(), Pack: p.seq, Ordinal: ordinal}})
	if err != nil {
		return err
	}
	if p.size++; p.size == 4 {
		return p.flush(ctx)
	}
	return nil
}

func (p *packer) flush(ctx context.Context) error {
	if p.w == nil {
		return nil
	}
	pack, err := p.w.Seal()
	if err != nil {
		return err
	}
	p.w, p.size = nil, 0
	p.seq++
	return p.a.run.PutPack(ctx, pack)
}

// backup makes a point and opens it.
func (w *world) backup(base *Point, sizeBytes int64, changes ...change) *Point {
	w.t.Helper()
	ctx := context.Background()
	a, err := w.begin(ctx, base)
	if err == nil {
		err = a.upload(ctx, sizeBytes, changes...)
	}
	if err == nil {
		err = a.run.Publish(ctx, a.record)
	}
	if err != nil {
		w.t.Fatalf("backup: %v", err)
	}
	w.points[a.run.ID()] = a.disk
	w.disk = a.disk
	return w.open(a.run.ID())
}

func (w *world) open(run ident.RunID) *Point {
	w.t.Helper()
	p, err := w.repo.OpenPoint(context.Background(), testMachine, run)
	if err != nil {
		w.t.Fatalf("open point: %v", err)
	}
	return p
}

func (w *world) diskOf(run ident.RunID) *Disk {
	w.t.Helper()
	d, err := w.open(run).Disk("root")
	if err != nil {
		w.t.Fatalf("open disk: %v", err)
	}
	return d
}

// check restores a point and compares every byte.
func (w *world) check(run ident.RunID) {
	w.t.Helper()
	if err := w.compare(run); err != nil {
		w.t.Fatalf("point %s: %v", run, err)
	}
}

func (w *world) compare(run ident.RunID) error {
	p, err := w.repo.OpenPoint(context.Background(), testMachine, run)
	if err != nil {
		return err
	}
	d, err := p.Disk("root")
	if err != nil {
		return err
	}
	got := make([]byte, d.Size())
	if n, err := d.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) || n != len(got) {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	if !bytes.Equal(got, w.points[run]) {
		return errors.New("restored bytes differ")
	}
	return nil
}

// forget puts a tombstone.
func (w *world) forget(run ident.RunID) {
	w.t.Helper()
	body, err := format.AppendMark(nil, format.KindTombstone, &format.Mark{Identity: w.repo.identity(testMachine, w.machine.ID, run), Nonce: format.Nonce{1}, By: "test", Time: w.clock()})
	if err == nil {
		err = w.mem.Put(context.Background(), format.TombstoneKey(testMachine, run, 0), store.NewBody(body), store.PutOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// flip turns one bit of an object.
func (w *world) flip(key string, at int) (undo func()) {
	w.t.Helper()
	old, err := store.ReadAll(context.Background(), w.mem, key, format.MaxObjectBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	spoiled := bytes.Clone(old)
	spoiled[at] ^= 1
	w.mem.Replace(key, spoiled)
	return func() { w.mem.Replace(key, old) }
}

func (w *world) keys(prefix string) (keys []string) {
	w.t.Helper()
	for info, err := range w.mem.List(context.Background(), prefix) {
		if err != nil {
			w.t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}
