package upload

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// sequencer puts the results of the workers into packs and maps, in the order of the disks.
type sequencer struct {
	*pipeline
	pack *format.PackWriter // nil between packs
	seq  uint32             // of pack
	next uint32             // of the pack after it
}

func (p *pipeline) sequence(ctx context.Context) error {
	defer close(p.full)
	s := sequencer{pipeline: p}
	for {
		t, ok, err := receive(ctx, p.ordered)
		if err != nil {
			return err
		}
		if !ok {
			return s.flush(ctx)
		}
		if _, _, err := receive(ctx, t.done); err != nil {
			return err
		}
		for i := range t.steps {
			if err := s.apply(ctx, &p.jobs[t.job], &t.steps[i]); err != nil {
				return err
			}
		}
		p.o.Stats.Queued.Add(-1)
		p.jobs[t.job].Stats.Passed.Add(p.grids[t.job].passed(t.piece))
		p.frames <- t.buffer[:0] // never blocks: the list has room for every buffer
	}
}

func (s *sequencer) apply(ctx context.Context, job *Job, st *step) error {
	span := st.span
	switch {
	case st.frame.Compressed != nil:
		ordinal, err := s.appendFrame(ctx, st.frame)
		if err != nil {
			return err
		}
		span = blockmap.Span{
			First: st.frame.FirstBlock, Count: int64(len(st.frame.Hashes)),
			Loc: format.Location{Run: s.o.Pack.Run, Pack: s.seq, Ordinal: ordinal},
		}
	case span.Zero && !job.Rescan:
		// The pack says so too, so that its run's map can be made again from the base's and the packs.
		if err := s.appendZero(ctx, job.Ordinal, span); err != nil {
			return err
		}
	}
	if err := job.Map.Set(ctx, span); err != nil {
		return fmt.Errorf("disk %s: write the map: %w", job.Name, err)
	}
	return nil
}

// appendFrame gives the ordinal of the frame's first block in pack s.seq.
func (s *sequencer) appendFrame(ctx context.Context, f format.Frame) (uint32, error) {
	if s.pack != nil && !s.pack.Fits(len(f.Hashes), len(f.Compressed)) {
		if err := s.flush(ctx); err != nil {
			return 0, err
		}
	}
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	return s.pack.AppendFrame(f)
}

func (s *sequencer) appendZero(ctx context.Context, disk uint16, span blockmap.Span) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	err := s.pack.AppendZero(disk, span.First, span.Count)
	if !errors.Is(err, format.ErrPackFull) {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	return s.pack.AppendZero(disk, span.First, span.Count)
}

// begin makes sure that there is a pack to append to.
func (s *sequencer) begin(ctx context.Context) error {
	if s.pack != nil {
		return nil
	}
	w, _, err := receive(ctx, s.writers)
	if err != nil {
		return err
	}
	s.seq = s.next
	s.next++
	h := s.o.Pack
	h.Seq, h.BlockBytes = s.seq, s.o.Codec.BlockBytes()
	if _, err := io.ReadFull(s.o.Random, h.Salt[:]); err != nil {
		return fmt.Errorf("read random bytes: %w", err)
	}
	if w == nil {
		w = format.NewPackWriter(h, packBytes)
		s.o.Stats.BufferBytes.Add(packBytes)
	} else {
		w.Reset(h)
	}
	s.pack = w
	return nil
}

// flush hands the present pack, if any, to the putters.
func (s *sequencer) flush(ctx context.Context) error {
	if s.pack == nil {
		return nil
	}
	full := s.pack
	s.pack = nil
	return send(ctx, s.full, full)
}

func (p *pipeline) put(ctx context.Context) error {
	for {
		w, ok, err := receive(ctx, p.full)
		if !ok {
			return err
		}
		if err := p.store(ctx, w); err != nil {
			return err
		}
		p.writers <- w // never blocks: the list has room for every writer
	}
}

func (p *pipeline) store(ctx context.Context, w *format.PackWriter) error {
	defer p.o.Stats.put.work()()
	pack, err := w.Seal()
	if err != nil {
		return fmt.Errorf("seal a pack: %w", err)
	}
	if err := p.target.PutPack(ctx, pack); err != nil {
		return fmt.Errorf("store pack %d: %w", pack.Seq, err)
	}
	return nil
}

// passed is how many bytes of the disk a piece stands for.
func (g grid) passed(p piece) int64 {
	if p.count > 0 {
		return g.runLen(p.first, p.count)
	}
	var n int64
	_ = eachRun(p.read|p.zero, func(first, count int) error {
		n += g.runLen(p.first+int64(first), int64(count))
		return nil
	})
	return n
}
