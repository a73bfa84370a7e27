package upload

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const blockBytes = 64 << 10

// memoryDisk is a disk in memory with chosen extents.
type memoryDisk struct {
	data    []byte
	extents []extent.Extent
	readErr error // of reads that touch byte 0
}

func (d *memoryDisk) Size() int64                        { return int64(len(d.data)) }
func (d *memoryDisk) Extents(context.Context) extent.Seq { return extent.Of(d.extents...) }
func (d *memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 && d.readErr != nil {
		return 0, d.readErr
	}
	n := copy(p, d.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// memoryMap is a map as a plain table, and demands ascending spans.
type memoryMap struct {
	t    *testing.T
	loc  map[int64]format.Location
	next int64
	sets int
}

func (m *memoryMap) Set(_ context.Context, s blockmap.Span) error {
	if s.First < m.next || s.Count < 1 {
		m.t.Errorf("span %+v comes after block %d", s, m.next)
	}
	m.next = s.First + s.Count
	m.sets++
	for i := range s.Count {
		if s.Zero {
			delete(m.loc, s.First+i)
			continue
		}
		l := s.Loc
		l.Ordinal += uint32(i)
		m.loc[s.First+i] = l
	}
	return nil
}

// Spans gives one span a block: the most fragmented answer that is right.
func (m *memoryMap) Spans(_ context.Context, first, count int64) iter.Seq2[blockmap.Span, error] {
	return func(yield func(blockmap.Span, error) bool) {
		for n := first; n < first+count; n++ {
			loc, ok := m.loc[n]
			if !yield(blockmap.Span{First: n, Count: 1, Zero: !ok, Loc: loc}, nil) {
				return
			}
		}
	}
}

// memoryTarget keeps copies of packs, and tells the hashes of their blocks.
type memoryTarget struct {
	mu    sync.Mutex
	packs map[format.Location][]byte // by Run and Pack
	index map[format.Location]*format.PackIndex
	fail  error
	slow  time.Duration
}

func newMemoryTarget() *memoryTarget {
	return &memoryTarget{packs: map[format.Location][]byte{}, index: map[format.Location]*format.PackIndex{}}
}

func (m *memoryTarget) forRun(run ident.RunID) Target { return runTarget{m, run} }

type runTarget struct {
	*memoryTarget
	run ident.RunID
}

func (r runTarget) PutPack(_ context.Context, p format.SealedPack) error {
	time.Sleep(r.slow)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	_, _, index, err := format.ParsePack(p.Bytes)
	if err != nil {
		return err
	}
	key := format.Location{Run: r.run, Pack: p.Seq}
	r.packs[key], r.index[key] = bytes.Clone(p.Bytes), index
	return nil
}

func (m *memoryTarget) BlockHash(_ context.Context, loc format.Location) (format.BlockHash, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.index[format.Location{Run: loc.Run, Pack: loc.Pack}]
	if x == nil {
		return format.BlockHash{}, false, nil
	}
	h, ok := x.Hash(loc.Ordinal)
	return h, ok, nil
}

// bytesOf reads the disk that a map describes.
func (m *memoryTarget) bytesOf(t *testing.T, codec *format.Codec, disk *memoryMap, size int64) []byte {
	t.Helper()
	out := make([]byte, (size+blockBytes-1)/blockBytes*blockBytes)
	for n, loc := range disk.loc {
		key := format.Location{Run: loc.Run, Pack: loc.Pack}
		f, ok := m.index[key].Frame(loc.Ordinal)
		if !ok {
			t.Fatalf("block %d: no frame at %v", n, loc)
		}
		plain, err := codec.Decompress(nil, m.packs[key][f.Offset:f.Offset+f.Length], f.Blocks)
		if err != nil {
			t.Fatal(err)
		}
		copy(out[n*blockBytes:], plain[(loc.Ordinal-f.FirstOrdinal)*blockBytes:][:blockBytes])
	}
	return out[:size]
}

type bench struct {
	codec  *format.Codec
	hasher *format.BlockHasher
}

func newBench(t testing.TB) bench {
	codec, err := format.NewCodec(blockBytes, 4)
	if err != nil {
		t.Fatal(err)
	}
	return bench{codec, format.NewBlockHasher(format.HashKey{1})}
}

func (b bench) options(t testing.TB, run byte) Options {
	return Options{
		Codec: b.codec, Hasher: b.hasher, Random: rand.NewChaCha8([32]byte{run}), Workers: 3, MemoryBytes: 64 << 20,
		Pack: format.PackHeader{Repository: format.RepositoryID{1}, MachineID: ident.MachineID{2}, Run: ident.RunID{run}},
	}
}

// fill writes text-like, random and zero stretches.
func fill(random *rand.Rand, p []byte) {
	for off := 0; off < len(p); {
		n := min(random.IntN(300<<10)+1, len(p)-off)
		switch kind := random.IntN(3); kind {
		case 0:
			clear(p[off : off+n])
		default:
			for i := off; i < off+n; i += 8 {
				v := random.Uint64()
				if kind == 1 {
					v = v&0x0f0f0f0f0f0f0f0f | 0x6060606060606060
				}
				var word [8]byte
				binary.LittleEndian.PutUint64(word[:], v)
				copy(p[i:off+n], word[:])
			}
		}
		off += n
	}
}

func TestWhatIsUploadedReadsBackOverManyRuns(t *testing.T) {
	b := newBench(t)
	random := rand.New(rand.NewPCG(3, 4))
	disk := &memoryDisk{data: make([]byte, 40<<20+512)}
	fill(random, disk.data)
	target := newMemoryTarget()
	table := &memoryMap{t: t, loc: map[int64]format.Location{}}
	for run := byte(1); run <= 8; run++ {
		base := &memoryMap{loc: maps.Clone(table.loc)}
		job := Job{Name: "disk", Disk: disk, Map: table, Stats: new(DiskStats)}
		switch {
		case run == 1:
			job.Rescan = true
			disk.extents = []extent.Extent{{Len: disk.Size()}}
		case run%4 == 0: // a rescan against what is there: the new map starts from nothing
			job.Rescan, job.Base, job.Hashes = true, base, target
			disk.extents = []extent.Extent{{Len: disk.Size()}}
			job.Map = &memoryMap{t: t, loc: map[int64]format.Location{}}
		default:
			job.Base, job.Hashes = base, target
			disk.extents = dirty(random, disk)
		}
		table.next = 0
		if err := Run(context.Background(), []Job{job}, target.forRun(ident.RunID{run}), b.options(t, run)); err != nil {
			t.Fatalf("run %d: %v", run, err)
		}
		table = job.Map.(*memoryMap)
		if got := target.bytesOf(t, b.codec, table, disk.Size()); !bytes.Equal(got, disk.data) {
			t.Fatalf("run %d: what was stored differs from the disk", run)
		}
		s := job.Stats
		if job.Rescan && run > 1 && s.Stored.Load() != 0 {
			t.Errorf("run %d: a rescan of an unchanged disk stored %d bytes", run, s.Stored.Load())
		}
		if total := s.Zero.Load() + s.Skipped.Load() + s.Changed.Load(); total != s.Passed.Load() {
			t.Errorf("run %d: %d bytes are zero, skipped or changed; %d passed", run, total, s.Passed.Load())
		}
	}
}

// dirty changes random ranges of the disk and lists them, some of them rewritten with what they held.
func dirty(random *rand.Rand, d *memoryDisk) (extents []extent.Extent) {
	for off := int64(0); ; {
		off += random.Int64N(4 << 20)
		n := random.Int64N(1<<20) + 1
		if off+n > d.Size() {
			return extents
		}
		e := extent.Extent{Off: off, Len: n}
		switch random.IntN(4) {
		case 0: // rewritten with the same bytes
		case 1:
			clear(d.data[off : off+n])
			e.Zero = true
		default:
			fill(random, d.data[off:off+n])
		}
		extents = append(extents, e)
		off += n
	}
}

func TestSeveralDisksShareTheRunsPacks(t *testing.T) {
	b := newBench(t)
	random := rand.New(rand.NewPCG(5, 6))
	target := newMemoryTarget()
	var jobs []Job
	for n := range 3 {
		d := &memoryDisk{data: make([]byte, 5<<20)}
		fill(random, d.data)
		d.extents = []extent.Extent{{Len: d.Size()}}
		jobs = append(jobs, Job{Name: "d", Ordinal: uint16(n), Disk: d, Rescan: true, Stats: new(DiskStats), Map: &memoryMap{t: t, loc: map[int64]format.Location{}}})
	}
	if err := Run(context.Background(), jobs, target.forRun(ident.RunID{9}), b.options(t, 9)); err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		if !bytes.Equal(target.bytesOf(t, b.codec, j.Map.(*memoryMap), j.Disk.Size()), j.Disk.(*memoryDisk).data) {
			t.Fatalf("disk %d differs", j.Ordinal)
		}
	}
	if len(target.packs) != 1 {
		t.Errorf("%d packs for 15 MiB, want 1", len(target.packs))
	}
}

func TestTheSameInputGivesTheSamePacks(t *testing.T) {
	b := newBench(t)
	random := rand.New(rand.NewPCG(7, 8))
	d := &memoryDisk{data: make([]byte, 30<<20)}
	fill(random, d.data)
	d.extents = []extent.Extent{{Len: d.Size()}}
	var first *memoryTarget
	for range 2 {
		target := newMemoryTarget()
		job := Job{Name: "d", Disk: d, Rescan: true, Stats: new(DiskStats), Map: &memoryMap{t: t, loc: map[int64]format.Location{}}}
		if err := Run(context.Background(), []Job{job}, target.forRun(ident.RunID{1}), b.options(t, 1)); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = target
			continue
		}
		for key, pack := range first.packs {
			if !bytes.Equal(pack, target.packs[key]) {
				t.Fatalf("pack %v differs between two runs", key)
			}
		}
	}
}

func TestAnErrorEndsTheRunAndKeepsItsSide(t *testing.T) {
	b := newBench(t)
	random := rand.New(rand.NewPCG(9, 9))
	newJob := func() (Job, *memoryDisk) {
		d := &memoryDisk{data: make([]byte, 64<<20)}
		fill(random, d.data)
		d.extents = []extent.Extent{{Len: d.Size()}}
		return Job{Name: "root", Disk: d, Rescan: true, Stats: new(DiskStats), Map: &memoryMap{t: t, loc: map[int64]format.Location{}}}, d
	}
	run := ident.RunID{1}

	job, d := newJob()
	d.readErr = errors.New("medium error")
	var source *SourceError
	if err := Run(context.Background(), []Job{job}, newMemoryTarget().forRun(run), b.options(t, 1)); !errors.As(err, &source) || source.Disk != "root" || !errors.Is(err, d.readErr) {
		t.Errorf("a disk that cannot be read: got %v", err)
	}

	job, _ = newJob()
	full := newMemoryTarget()
	full.fail = errors.New("store is full")
	if err := Run(context.Background(), []Job{job}, full.forRun(run), b.options(t, 1)); !errors.Is(err, full.fail) || errors.As(err, &source) {
		t.Errorf("a store that is full: got %v", err)
	}

	job, d = newJob()
	d.extents = []extent.Extent{{Off: d.Size() - 10, Len: 512}}
	if err := Run(context.Background(), []Job{job}, newMemoryTarget().forRun(run), b.options(t, 1)); err == nil {
		t.Error("an extent beyond the end of the disk is no error")
	}

	job, _ = newJob()
	slow := newMemoryTarget()
	slow.slow = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := Run(ctx, []Job{job}, slow.forRun(run), b.options(t, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cancelled run: got %v", err)
	}
}

func TestBuffersStayWithinTheirBudget(t *testing.T) {
	for _, memory := range []int64{1, 64 << 20, 128 << 20, 1 << 30} {
		for _, workers := range []int{1, 2, 64} {
			o := newBench(t).options(t, 1)
			o.MemoryBytes, o.Workers = memory, workers
			p := newPipeline(nil, nil, o)
			packs := int64(cap(p.writers)) * packBytes
			windows := int64(p.workers)*2*windowBytes + int64(cap(p.frames))*windowBytes
			if least := int64(2*packBytes + 6*windowBytes); packs+windows > max(memory, least)+2*windowBytes {
				t.Errorf("%d workers, %d bytes allowed: %d bytes of packs and %d of windows", workers, memory, packs, windows)
			}
			if p.workers < 1 || p.putters < 1 {
				t.Errorf("%d workers and %d putters", p.workers, p.putters)
			}
		}
	}
}

func BenchmarkUpload(b *testing.B) {
	kit := newBench(b)
	random := rand.New(rand.NewPCG(1, 1))
	d := &memoryDisk{data: make([]byte, 256<<20)}
	words := [][]byte{[]byte("func "), []byte("return "), []byte("error "), []byte("\x00\x00\x00\x00"), []byte("0123456789")}
	for off := 0; off < len(d.data); {
		off += copy(d.data[off:], slices.Concat(words[random.IntN(len(words))], []byte{byte(random.Uint32())}))
	}
	d.extents = []extent.Extent{{Len: d.Size()}}
	o := kit.options(b, 1)
	o.Workers, o.MemoryBytes = 0, 0
	b.SetBytes(d.Size())
	for b.Loop() {
		job := Job{Name: "d", Disk: d, Rescan: true, Stats: new(DiskStats), Map: discardMap{}}
		if err := Run(context.Background(), []Job{job}, discardTarget{}, o); err != nil {
			b.Fatal(err)
		}
	}
}

type discardMap struct{}

func (discardMap) Set(context.Context, blockmap.Span) error { return nil }

type discardTarget struct{}

func (discardTarget) PutPack(context.Context, format.SealedPack) error { return nil }
