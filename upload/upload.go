package upload

import (
	"context"
	"fmt"
	"io"
	"iter"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

const (
	windowBytes = format.WindowBytes // what one worker reads and compresses at a time

	// DefaultMemoryBytes bounds the buffers of a Run. What it does not cover is small and does not grow with the
	// disk: the zstd tables of the workers, map nodes and the caches of the repository.
	DefaultMemoryBytes = 128 << 20

	packBytes  = 16 << 20 // a pack is sealed when the next frame would not fit
	maxPutters = 8
)

// Disk is one disk, frozen at one instant.
type Disk interface {
	io.ReaderAt // parallel calls; never short without an error
	Size() int64
	Extents(ctx context.Context) extent.Seq // what is to be looked at, ascending; zero stretches marked
}

// Mapper takes the new content of a disk's map in ascending order.
type Mapper interface {
	Set(ctx context.Context, span blockmap.Span) error
}

// Base is what the disk's map held before, to compare with.
type Base interface {
	Spans(ctx context.Context, first, count int64) iter.Seq2[blockmap.Span, error]
}

// Hashes tells the hash of a stored block; false when it is not known or the block must not be relied on.
type Hashes interface {
	BlockHash(ctx context.Context, loc format.Location) (format.BlockHash, bool, error)
}

// Target stores a sealed pack. It returns nil only when the store has confirmed the whole object.
type Target interface {
	PutPack(ctx context.Context, pack format.SealedPack) error
}

// Job is one disk of a Run.
type Job struct {
	Name    string
	Ordinal uint16 // the disk's number in the record
	Disk    Disk
	Map     Mapper

	// Base and Hashes serve to leave out blocks that equal what is stored. Both nil: nothing to compare with.
	Base   Base
	Hashes Hashes

	// Rescan says that Map starts from nothing: blocks that are never set are zero, and a block that equals the
	// base's is set to the base's location. Otherwise Map starts from Base, and an equal block is left alone.
	Rescan bool

	Stats *DiskStats
}

// Options of a Run. Codec, with the block size, and Hasher are the repository's.
type Options struct {
	Codec       *format.Codec
	Hasher      *format.BlockHasher
	Pack        format.PackHeader // whose packs these are; Seq, BlockBytes and Salt are filled in
	Random      io.Reader         // for salts
	Workers     int               // 0: one per core
	MemoryBytes int64             // 0: DefaultMemoryBytes
	Stats       *PipelineStats    // nil: nobody watches
}

// Run uploads the extents of all jobs, one disk after the other, and returns when every pack is stored and every map
// span is set, or with the first error. An error of a disk is a *SourceError; everything else is the repository's.
func Run(ctx context.Context, jobs []Job, target Target, o Options) error {
	p := newPipeline(jobs, target, o)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.dispatch(ctx) })
	for range p.workers {
		group.Go(func() error { return p.work(ctx) })
	}
	group.Go(func() error { return p.sequence(ctx) })
	for range p.putters {
		group.Go(func() error { return p.put(ctx) })
	}
	return group.Wait()
}

// SourceError is a failure to read a disk, kept apart from every failure of the repository.
type SourceError struct {
	Disk     string
	Off, Len int64 // bytes of the disk; Len 0: while listing extents
	Err      error
}

func (e *SourceError) Error() string {
	if e.Len == 0 {
		return fmt.Sprintf("disk %s: list extents: %v", e.Disk, e.Err)
	}
	return fmt.Sprintf("disk %s: read %d bytes at %d: %v", e.Disk, e.Len, e.Off, e.Err)
}

func (e *SourceError) Unwrap() error { return e.Err }

// pipeline is one Run. Its channels are the only state that its goroutines share.
type pipeline struct {
	jobs    []Job
	grids   []grid
	target  Target
	o       Options
	workers int
	putters int

	todo    chan *task              // dispatcher to workers
	ordered chan *task              // dispatcher to sequencer, the same tasks in the order of the disk; its capacity bounds the tasks in flight
	full    chan *format.PackWriter // sequencer to putters
	writers chan *format.PackWriter // putters back to the sequencer: the free list bounds the packs in flight
	frames  chan []byte             // sequencer back to the workers: buffers for compressed frames
}

// task is one piece of one disk on its way. done is closed by the worker when steps is filled in.
type task struct {
	job    int
	piece  piece
	steps  []step
	buffer []byte // what the frames of steps lie in; goes back to pipeline.frames
	done   chan struct{}
}

// newPipeline divides the memory: half for packs on their way to the store, the rest for windows being worked on.
func newPipeline(jobs []Job, target Target, o Options) *pipeline {
	if o.Stats == nil {
		o.Stats = &PipelineStats{}
	}
	// What an earlier Run of the same backup had is gone.
	o.Stats.Queued.Store(0)
	o.Stats.BufferBytes.Store(0)
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = DefaultMemoryBytes
	}
	packs := min(max(o.MemoryBytes/2/packBytes, 2), maxPutters+1)
	// A worker holds what it read and what it decoded, and one task more in flight holds what was compressed.
	perWorker := int64(4 * windowBytes)
	workers := min(max(o.MemoryBytes/2/perWorker, 1), int64(o.Workers))
	inFlight := 2 * workers

	p := &pipeline{
		jobs: jobs, target: target, o: o,
		workers: int(workers),
		putters: int(packs - 1),
		todo:    make(chan *task, inFlight),
		ordered: make(chan *task, inFlight),
		full:    make(chan *format.PackWriter),
		writers: make(chan *format.PackWriter, packs),
		frames:  make(chan []byte, inFlight+1),
	}
	for _, j := range jobs {
		p.grids = append(p.grids, newGrid(o.Codec.BlockBytes(), j.Disk.Size()))
	}
	for range packs {
		p.writers <- nil // made when first needed
	}
	for range inFlight + 1 {
		p.frames <- nil
	}
	return p
}

// dispatch walks the extents of all disks and hands out pieces.
func (p *pipeline) dispatch(ctx context.Context) error {
	defer close(p.todo)
	defer close(p.ordered)
	for n, job := range p.jobs {
		for piece, err := range p.grids[n].pieces(job.Disk.Extents(ctx)) {
			if err != nil {
				return &SourceError{Disk: job.Name, Err: err}
			}
			t := &task{job: n, piece: piece, done: make(chan struct{})}
			p.o.Stats.Queued.Add(1)
			if err := send(ctx, p.ordered, t); err != nil {
				return err
			}
			if err := send(ctx, p.todo, t); err != nil {
				return err
			}
		}
	}
	return nil
}

func send[T any](ctx context.Context, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func receive[T any](ctx context.Context, c <-chan T) (v T, ok bool, err error) {
	select {
	case v, ok = <-c:
		return v, ok, nil
	case <-ctx.Done():
		return v, false, context.Cause(ctx)
	}
}
