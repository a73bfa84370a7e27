// Package repotest makes repositories in memory for tests, and remembers what their disks held at each point.
package repotest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/mem"
)

// Block is the size of the blocks.
const Block = format.MinBlockBytes

// World is a repository, and what its disks held at each point.
type World struct {
	Mem    *mem.Store // dates its objects by the world's time
	Repo   *repo.Repository
	Points map[ident.RunID]map[string][]byte // by disk
	Cache  *repo.IndexCache                  // of repositories that are opened from here on; nil: none

	t        testing.TB
	machines map[ident.MachineName]format.Machine
	nature   *nature
}

// nature is what worlds share: time and chance.
type nature struct {
	mu     sync.Mutex
	now    time.Time
	random *rand.ChaCha8
}

func (n *nature) Read(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.random.Read(p)
}

// New makes a repository with fixed ids and times.
func New(t testing.TB) *World {
	w := &World{
		t: t, nature: &nature{random: rand.NewChaCha8([32]byte{1}), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		machines: map[ident.MachineName]format.Machine{}, Points: map[ident.RunID]map[string][]byte{},
	}
	w.Mem = mem.NewWithClock(func() time.Time { return w.Pass(0) })
	r, _, err := repo.Init(context.Background(), w.Mem, repo.InitOptions{Options: w.Options(), BlockBytes: Block, Tool: "test"})
	if err != nil {
		t.Fatal(err)
	}
	w.Repo = r
	return w
}

// Options are those of every opening of the repository.
func (w *World) Options() repo.Options {
	return repo.Options{Clock: w.Clock, Random: w.nature, Cache: w.Cache}
}

// Clock goes on by a second with each look.
func (w *World) Clock() time.Time {
	return w.Pass(time.Second)
}

// Pass lets time go by, and tells what it is then.
func (w *World) Pass(d time.Duration) time.Time {
	w.nature.mu.Lock()
	defer w.nature.mu.Unlock()
	w.nature.now = w.nature.now.Add(d)
	return w.nature.now
}

// Through gives the same world, which does everything through a store that passes calls on to Mem.
func (w *World) Through(s store.Store) *World {
	w.t.Helper()
	r, err := repo.Open(context.Background(), s, w.Options())
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	return &World{Mem: w.Mem, Repo: r, Points: w.Points, Cache: w.Cache, t: w.t, machines: w.machines, nature: w.nature}
}

// Open opens the repository anew, with empty caches.
func (w *World) Open() *repo.Repository {
	w.t.Helper()
	r, err := repo.Open(context.Background(), w.Mem, w.Options())
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	return r
}

// Machine gives a machine, made when it is not there.
func (w *World) Machine(name ident.MachineName) format.Machine {
	w.t.Helper()
	if m, ok := w.machines[name]; ok {
		return m
	}
	id, err := ident.NewMachineID(w.nature)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := w.Repo.CreateMachine(context.Background(), format.Machine{Name: name, ID: id, Created: w.Clock(), FirstHost: "host1"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.machines[name] = m
	return m
}

// Change is neighbouring blocks of data made from a seed, or zeros.
type Change struct {
	First, Count int64
	Seed         uint64 // 0: zeros
}

// Changes makes changes from triples of first block, number of blocks, and seed.
func Changes(triples ...int64) (all []Change) {
	for t := range slices.Chunk(triples, 3) {
		all = append(all, Change{First: t[0], Count: t[1], Seed: uint64(t[2])})
	}
	return all
}

// DiskSpec is what a run does with a disk. Ordinals are given by the order.
type DiskSpec struct {
	Name      string
	SizeBytes int64
	Missing   bool
	FromBase  bool // the map starts from the base's
	Changes   []Change
}

// content gives the bytes of a block. A quarter of it does not compress.
func content(block int64, seed uint64) []byte {
	b := make([]byte, Block)
	if seed != 0 {
		key := [32]byte{}
		binary.LittleEndian.PutUint64(key[:], seed)
		binary.LittleEndian.PutUint64(key[8:], uint64(block))
		_, _ = rand.NewChaCha8(key).Read(b[:256])
	}
	return b
}

// Attempt is a run under way.
type Attempt struct {
	*World
	Run    *repo.Run
	Base   *repo.Point
	Record *format.Record
	disks  map[string][]byte

	pack   *format.PackWriter
	seq    uint32
	frames int
}

// Begin starts a run on a point, or on none.
func (w *World) Begin(machine ident.MachineName, base ident.RunID) *Attempt {
	w.t.Helper()
	a, err := w.TryBegin(machine, base)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// TryBegin is Begin for a run that may fail.
func (w *World) TryBegin(machine ident.MachineName, base ident.RunID) (a *Attempt, err error) {
	ctx := context.Background()
	a = &Attempt{World: w, disks: map[string][]byte{}}
	spec := repo.IntentSpec{Machine: machine, MachineID: w.Machine(machine).ID, Host: "host1", BootID: "boot1", Tool: "test"}
	if !base.IsZero() {
		if a.Base, err = w.Repo.OpenPoint(ctx, machine, base); err != nil {
			return nil, err
		}
		spec.Bases = []format.Base{{Disk: "root", Run: base}}
	}
	a.Run, err = w.Repo.Begin(ctx, spec)
	return a, err
}

// Upload stores the disks in packs of at most three frames and seals the run.
func (a *Attempt) Upload(disks ...DiskSpec) {
	a.t.Helper()
	if err := a.TryUpload(disks...); err != nil {
		a.t.Fatal(err)
	}
}

// TryUpload is Upload for a run that may fail.
func (a *Attempt) TryUpload(disks ...DiskSpec) (err error) {
	defer func() {
		switch f := recover().(type) {
		case nil:
		case failure:
			err = f.error
		default:
			panic(f)
		}
	}()
	ctx := context.Background()
	a.Record = &format.Record{Time: a.Clock(), Started: a.Pass(0), Consistency: format.ConsistencyOffline, Host: "host1", Tool: "test"}
	for i, d := range disks {
		rec := format.DiskRecord{Name: d.Name, Ordinal: i, Mode: format.ModeFull, SizeBytes: d.SizeBytes}
		if d.Missing {
			rec.Mode, rec.Error = format.ModeMissing, "it was unplugged"
		} else {
			rec.Map = a.Disk(ctx, i, d)
		}
		a.Record.Disks = append(a.Record.Disks, rec)
	}
	a.Flush(ctx)
	var deps []format.Dependency
	if a.Base != nil {
		deps = a.Base.Dependencies()
	}
	_, err = a.Run.Seal(ctx, deps)
	return err
}

// failure is thrown by the parts of an upload.
type failure struct{ error }

func must(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// Disk stores the changes of a disk and gives its map.
func (a *Attempt) Disk(ctx context.Context, ordinal int, d DiskSpec) format.MapRoot {
	content := make([]byte, d.SizeBytes)
	a.disks[d.Name] = content
	var root *format.MapRoot
	var baseBlocks int64
	if d.FromBase {
		was := a.Base.Record().Disk(d.Name)
		root, baseBlocks = &was.Map, format.Blocks(was.SizeBytes, Block)
		copy(content, a.Points[a.Base.Record().Run][d.Name])
	}
	b, err := blockmap.NewBuilder(root, baseBlocks, format.Blocks(d.SizeBytes, Block), a.Repo.Nodes(a.Run.Identity().Machine), a.Run.Sink())
	must(err)
	for _, c := range d.Changes {
		for block := c.First; block < c.First+c.Count; {
			n := min(c.First+c.Count-block, 4-block%4)
			a.Frame(ctx, b, ordinal, content, block, n, c.Seed)
			block += n
		}
	}
	out, err := b.Finish(ctx)
	must(err)
	return out
}

// Frame stores neighbouring blocks.
func (a *Attempt) Frame(ctx context.Context, b *blockmap.Builder, ordinal int, disk []byte, block, n int64, seed uint64) {
	var raw []byte
	f := format.Frame{Disk: uint16(ordinal), FirstBlock: block}
	for i := range n {
		bytes := content(block+i, seed)
		if end := (block + i + 1) * Block; end > int64(len(disk)) {
			clear(bytes[Block-(end-int64(len(disk))):])
		}
		copy(disk[(block+i)*Block:], bytes)
		raw = append(raw, bytes...)
		f.Hashes = append(f.Hashes, a.Repo.Hasher().Sum(bytes))
	}
	if a.pack == nil {
		id := a.Run.Identity()
		a.pack = format.NewPackWriter(format.PackHeader{Repository: id.Repository, MachineID: id.MachineID, Run: id.Run, Seq: a.seq, BlockBytes: Block}, 1<<20)
	}
	span := blockmap.Span{First: block, Count: n, Zero: seed == 0}
	var err error
	if seed == 0 {
		err = a.pack.AppendZero(uint16(ordinal), block, n)
	} else {
		f.Compressed = a.Repo.Codec().Compress(nil, raw)
		span.Loc = format.Location{Run: a.Run.ID(), Pack: a.seq}
		span.Loc.Ordinal, err = a.pack.AppendFrame(f)
	}
	if err == nil {
		err = b.Set(ctx, span)
	}
	must(err)
	if a.frames++; a.frames == 3 {
		a.Flush(ctx)
	}
}

// Flush stores the pack that was begun.
func (a *Attempt) Flush(ctx context.Context) {
	if a.pack == nil {
		return
	}
	p, err := a.pack.Seal()
	if err == nil {
		err = a.Run.PutPack(ctx, p)
	}
	must(err)
	a.pack, a.frames = nil, 0
	a.seq++
}

// Publish makes the run a point.
func (a *Attempt) Publish() ident.RunID {
	a.t.Helper()
	if err := a.TryPublish(); err != nil {
		a.t.Fatal(err)
	}
	return a.Run.ID()
}

// TryPublish is Publish for a run that may fail.
func (a *Attempt) TryPublish() error {
	a.Points[a.Run.ID()] = a.disks // whatever the answer is, it may be a point
	return a.Run.Publish(context.Background(), a.Record)
}

// Backup makes a point.
func (w *World) Backup(machine ident.MachineName, base ident.RunID, disks ...DiskSpec) ident.RunID {
	w.t.Helper()
	a := w.Begin(machine, base)
	a.Upload(disks...)
	return a.Publish()
}

// Put stores a document that was made without an error.
func (w *World) Put(key string, body []byte, err error) {
	w.t.Helper()
	if err == nil {
		err = w.Mem.Put(context.Background(), key, store.NewBody(body), store.PutOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// Identity is what every object of a run repeats.
func (w *World) Identity(machine ident.MachineName, run ident.RunID) format.Identity {
	return format.Identity{Repository: w.Repo.ID(), Machine: machine, MachineID: w.machines[machine].ID, Run: run}
}

// Check compares every disk of a point with what it held.
func (w *World) Check(machine ident.MachineName, run ident.RunID) error {
	ctx := context.Background()
	p, err := w.Open().OpenPoint(ctx, machine, run)
	if err != nil {
		return err
	}
	for name, want := range w.Points[run] {
		d, err := p.Disk(name)
		if err != nil {
			return err
		}
		got := make([]byte, len(want))
		if _, err := d.ReadAtContext(ctx, got, 0); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("disk %s of %s is not what it was", name, run)
		}
	}
	return nil
}
