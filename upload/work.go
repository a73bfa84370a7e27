package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/qbackup/qbackup/internal/iszero"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// step is what is to become of some neighbouring blocks: a frame to store, or a span to set (zero, or where the same
// bytes lie already). Blocks that stay as they are make no step.
type step struct {
	frame format.Frame // when Compressed is not nil
	span  blockmap.Span
}

// errBadFrame means that a frame did not decode to what was compressed: memory or codec at fault, never the disk.
var errBadFrame = errors.New("a compressed frame does not decode to the blocks it was made of; this machine's memory or processor may be faulty")

// worker holds the buffers that one worker goroutine reuses for every window.
type worker struct {
	*pipeline
	window  []byte // blocks of the window, each at its place
	decoded []byte // frames decoded again
}

func (p *pipeline) work(ctx context.Context) error {
	w := worker{pipeline: p}
	for {
		t, ok, err := receive(ctx, p.todo)
		if !ok {
			return err
		}
		if t.buffer, _, err = receive(ctx, p.frames); err != nil {
			return err
		}
		if err := w.process(ctx, t); err != nil {
			return err
		}
		close(t.done)
	}
}

// process fills in t.steps.
func (w *worker) process(ctx context.Context, t *task) error {
	job, g := &w.jobs[t.job], w.grids[t.job]
	if t.piece.count > 0 {
		t.steps = append(t.steps, zeroStep(t.piece.first, t.piece.count))
		job.Stats.Zero.Add(g.runLen(t.piece.first, t.piece.count))
		return nil
	}
	if w.window == nil {
		size := g.windowBlocks * g.blockBytes
		w.window, w.decoded = make([]byte, size), make([]byte, size)
		w.o.Stats.BufferBytes.Add(2 * size)
	}
	read := w.o.Stats.read.work()
	err := w.read(job, g, t.piece)
	read()
	if err != nil {
		return err
	}
	defer w.o.Stats.compress.work()()
	v, err := w.classify(ctx, job, g, t.piece)
	if err != nil {
		return err
	}
	return w.steps(t, job, g, v)
}

// read fills the window with the blocks of the piece, the last block of the disk padded with zeros.
func (w *worker) read(job *Job, g grid, piece piece) error {
	return eachRun(piece.read, func(first, count int) error {
		off := (piece.first + int64(first)) * g.blockBytes
		n := g.runLen(piece.first+int64(first), int64(count))
		start := int64(first) * g.blockBytes
		got, err := job.Disk.ReadAt(w.window[start:start+n], off)
		if int64(got) < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return &SourceError{Disk: job.Name, Off: off, Len: n, Err: err}
		}
		clear(w.window[start+n : start+int64(count)*g.blockBytes])
		job.Stats.Read.Add(n)
		return nil
	})
}

// verdict is what the window's blocks turned out to be, a bit a block.
type verdict struct {
	zero, same, changed uint64
	hashes              [64]format.BlockHash // of changed blocks
	locations           [64]format.Location  // of same blocks
}

func (w *worker) classify(ctx context.Context, job *Job, g grid, piece piece) (*verdict, error) {
	v := &verdict{zero: piece.zero}
	for i := range int64(64) {
		if piece.read>>i&1 == 0 {
			continue
		}
		block := w.window[i*g.blockBytes : (i+1)*g.blockBytes]
		if iszero.IsZero(block) {
			v.zero |= 1 << i
			continue
		}
		v.hashes[i] = w.o.Hasher.Sum(block)
		v.changed |= 1 << i
	}
	if job.Base == nil || v.changed == 0 {
		return v, nil
	}
	return v, w.compare(ctx, job, g, piece.first, v)
}

// compare moves blocks that equal the base's at the same place from changed to same.
func (w *worker) compare(ctx context.Context, job *Job, g grid, first int64, v *verdict) error {
	blocks := min(g.windowBlocks, (g.sizeBytes+g.blockBytes-1)/g.blockBytes-first)
	for span, err := range job.Base.Spans(ctx, first, blocks) {
		if err != nil {
			return fmt.Errorf("disk %s: read the map of the base: %w", job.Name, err)
		}
		if span.Zero {
			continue
		}
		for n := range span.Count {
			i := span.First + n - first
			if v.changed>>i&1 == 0 {
				continue
			}
			loc := span.Loc
			loc.Ordinal += uint32(n)
			hash, known, err := job.Hashes.BlockHash(ctx, loc)
			if err != nil {
				return fmt.Errorf("disk %s: look up the hash of a stored block: %w", job.Name, err)
			}
			if known && hash == v.hashes[i] {
				v.changed &^= 1 << i
				v.same |= 1 << i
				v.locations[i] = loc
			}
		}
	}
	return nil
}

// steps turns the verdict into steps in ascending order, and counts.
func (w *worker) steps(t *task, job *Job, g grid, v *verdict) error {
	first := t.piece.first
	for i := 0; i < 64; {
		n := 1
		switch bit := uint64(1) << i; {
		case v.zero&bit != 0:
			for i+n < 64 && v.zero>>(i+n)&1 == 1 {
				n++
			}
			job.Stats.Zero.Add(g.runLen(first+int64(i), int64(n)))
			t.steps = append(t.steps, zeroStep(first+int64(i), int64(n)))
		case v.same&bit != 0:
			job.Stats.Skipped.Add(g.blockLen(first + int64(i)))
			if job.Rescan {
				t.steps = append(t.steps, step{span: blockmap.Span{First: first + int64(i), Count: 1, Loc: v.locations[i]}})
			}
		case v.changed&bit != 0:
			for i+n < 64 && n < format.FrameBlocks(g.blockBytes) && v.changed>>(i+n)&1 == 1 {
				n++
			}
			if err := w.compress(t, job, g, i, n, v); err != nil {
				return err
			}
		}
		i += n
	}
	return nil
}

// compress appends the frame of n changed blocks from block i of the window on, after decoding it again (I1).
func (w *worker) compress(t *task, job *Job, g grid, i, n int, v *verdict) error {
	plain := w.window[int64(i)*g.blockBytes : int64(i+n)*g.blockBytes]
	if t.buffer == nil {
		// Room for the worst window: nothing compresses, and no two blocks share a frame.
		t.buffer = make([]byte, 0, windowBytes+windowBytes/g.blockBytes*(format.MaxFrameBytes(g.blockBytes)-g.blockBytes))
		w.o.Stats.BufferBytes.Add(int64(cap(t.buffer)))
	}
	start := len(t.buffer)
	t.buffer = w.o.Codec.Compress(t.buffer, plain)
	frame := t.buffer[start:len(t.buffer):len(t.buffer)]
	decoded, err := w.o.Codec.Decompress(w.decoded[:0], frame, n)
	if err != nil || !bytes.Equal(decoded, plain) {
		return fmt.Errorf("disk %s: blocks %d to %d: %w", job.Name, t.piece.first+int64(i), t.piece.first+int64(i+n)-1, errBadFrame)
	}
	t.steps = append(t.steps, step{frame: format.Frame{
		Disk:       job.Ordinal,
		FirstBlock: t.piece.first + int64(i),
		Compressed: frame,
		Hashes:     append([]format.BlockHash(nil), v.hashes[i:i+n]...),
	}})
	job.Stats.Changed.Add(g.runLen(t.piece.first+int64(i), int64(n)))
	job.Stats.Stored.Add(int64(len(frame)))
	return nil
}

func zeroStep(first, count int64) step {
	return step{span: blockmap.Span{First: first, Count: count, Zero: true}}
}
