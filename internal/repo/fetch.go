package repo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// frameKey names a frame. The hash of its pack's index is in it, so that what was
// checked against one manifest is never given for another.
type frameKey struct {
	index  indexKey
	offset int64
}

// request is one read of a disk: which blocks of which frames go where in p.
type request struct {
	disk  *Disk
	p     []byte
	off   int64
	wants []want
}

// want is neighbouring blocks of one frame, and where on the disk they belong.
type want struct {
	key     indexKey
	index   *format.PackIndex
	frame   format.IndexedFrame
	ordinal uint32 // of the first block
	first   int64  // place of the first block on the disk
	count   int64
}

// fetch is frames of one pack that are read with one request, in their order.
type fetch struct {
	key   indexKey
	wants []want
	end   int64 // in the pack
}

// clip gives the part of p that some blocks of the disk cover.
func (q *request) clip(first, count int64) extent.Extent {
	blockBytes := q.disk.point.r.BlockBytes()
	return clip(first*blockBytes, (first+count)*blockBytes, q.off, q.off+int64(len(q.p)))
}

// addSpan finds the frames of a span of data.
func (q *request) addSpan(ctx context.Context, s blockmap.Span) error {
	point := q.disk.point
	r, machine := point.r, point.machine
	m, err := point.RunManifest(ctx, s.Loc.Run)
	if err != nil {
		return err
	}
	e, err := entryOf(m, machine, s.Loc.Run, s.Loc.Pack)
	if err != nil {
		return err
	}
	index, err := r.packIndex(ctx, machine, s.Loc.Run, e)
	if err != nil {
		return err
	}
	key := indexKey{machine, s.Loc.Run, e.Seq, e.IndexHash}
	for done := int64(0); done < s.Count; {
		ordinal := s.Loc.Ordinal + uint32(done)
		frame, ok := index.Frame(ordinal)
		if !ok {
			return &Damage{Key: key.object(), Offset: -1, Err: fmt.Errorf("it has no block %d, to which a map refers: %w", ordinal, format.ErrCorrupt)}
		}
		count := min(s.Count-done, int64(frame.FirstOrdinal)+int64(frame.Blocks)-int64(ordinal))
		q.wants = append(q.wants, want{key, index, frame, ordinal, s.First + done, count})
		done += count
	}
	return nil
}

func (k indexKey) object() string { return format.PackKey(k.machine, k.run, k.seq) }

// plan groups what is wanted into requests: neighbouring frames, or with a small
// gap, come together.
func (q *request) plan() []fetch {
	slices.SortStableFunc(q.wants, func(a, b want) int {
		return cmp.Or(a.key.run.Compare(b.key.run), cmp.Compare(a.key.seq, b.key.seq), cmp.Compare(a.frame.Offset, b.frame.Offset))
	})
	var fetches []fetch
	for _, w := range q.wants {
		if n := len(fetches); n > 0 {
			f := &fetches[n-1]
			end := w.frame.Offset + w.frame.Length
			if f.key == w.key && w.frame.Offset <= f.end+gapBytes && end-f.wants[0].frame.Offset <= fetchBytes {
				f.wants, f.end = append(f.wants, w), max(f.end, end)
				continue
			}
		}
		fetches = append(fetches, fetch{w.key, []want{w}, w.frame.Offset + w.frame.Length})
	}
	return fetches
}

// run reads the frames of one fetch and copies their blocks. Bytes that are wrong
// are read a second time: they may have been spoiled on the way.
func (q *request) run(ctx context.Context, f fetch) error {
	if q.fromCache(f) {
		return nil
	}
	err := q.once(ctx, f)
	if isDamage(err) {
		err = q.once(ctx, f)
	}
	if err == nil {
		return nil
	}
	first := f.wants[0].frame.Offset
	err = judgeAt(f.key.object(), first, f.end-first, err)
	var ranges []extent.Extent
	known, ok := asDamage(err)
	for _, w := range f.wants {
		if ok && known.Offset >= 0 && known.Length > 0 && (w.frame.Offset >= known.Offset+known.Length || w.frame.Offset+w.frame.Length <= known.Offset) {
			continue
		}
		ranges = append(ranges, q.clip(w.first, w.count))
	}
	return q.disk.lost(err, joined(ranges)...)
}

// fromCache serves a fetch of one small part of a frame that is here already.
func (q *request) fromCache(f fetch) bool {
	for _, w := range f.wants {
		if w.frame.Offset != f.wants[0].frame.Offset {
			return false
		}
	}
	raw, ok := q.disk.point.r.frames.Peek(frameKey{f.key, f.wants[0].frame.Offset})
	if ok {
		for _, w := range f.wants {
			q.copy(w, raw)
		}
	}
	return ok
}

// scratch is the memory that one fetch needs; it goes from fetch to fetch.
type scratch struct{ compressed, blocks []byte }

func (q *request) once(ctx context.Context, f fetch) error {
	r := q.disk.point.r
	s, _ := r.scratches.Get().(*scratch)
	if s == nil {
		s = new(scratch)
	}
	defer r.scratches.Put(s)
	first := f.wants[0].frame.Offset
	s.compressed = slices.Grow(s.compressed[:0], int(f.end-first))
	b := s.compressed[:f.end-first]
	if err := r.readInto(ctx, f.key.object(), first, b); err != nil {
		return err
	}
	var raw []byte
	for i, w := range f.wants {
		if i == 0 || w.frame.Offset != f.wants[i-1].frame.Offset {
			s.blocks = slices.Grow(s.blocks[:0], w.frame.Blocks*int(r.BlockBytes()))
			var err error
			if raw, err = r.decode(s.blocks, b[w.frame.Offset-first:][:w.frame.Length], w); err != nil {
				return judgeAt(f.key.object(), w.frame.Offset, w.frame.Length, err)
			}
			if len(f.wants) == 1 && w.count < int64(w.frame.Blocks) {
				r.frames.Add(frameKey{f.key, w.frame.Offset}, bytes.Clone(raw))
			}
		}
		q.copy(w, raw)
	}
	return nil
}

// decode gives all blocks of a frame, each compared with its hash in the index.
func (r *Repository) decode(dst, compressed []byte, w want) ([]byte, error) {
	raw, err := r.codec.Decompress(dst, compressed, w.frame.Blocks)
	if err != nil {
		return nil, err
	}
	for i := range w.frame.Blocks {
		ordinal := w.frame.FirstOrdinal + uint32(i)
		block := raw[int64(i)*r.BlockBytes():][:r.BlockBytes()]
		if h, ok := w.index.Hash(ordinal); !ok || r.hasher.Sum(block) != h {
			return nil, fmt.Errorf("block %d of the pack does not match its hash: %w", ordinal, format.ErrCorrupt)
		}
	}
	return raw, nil
}

// copy puts the wanted blocks of a decoded frame in their place.
func (q *request) copy(w want, raw []byte) {
	blockBytes := q.disk.point.r.BlockBytes()
	part := q.clip(w.first, w.count)
	from := int64(w.ordinal-w.frame.FirstOrdinal)*blockBytes + part.Off - w.first*blockBytes
	copy(q.p[part.Off-q.off:part.End()-q.off], raw[from:from+part.Len])
}

// joined sorts ranges and joins neighbours.
func joined(ranges []extent.Extent) []extent.Extent {
	slices.SortFunc(ranges, func(a, b extent.Extent) int { return cmp.Compare(a.Off, b.Off) })
	var out []extent.Extent
	for _, e := range ranges {
		if n := len(out); n > 0 && out[n-1].End() == e.Off {
			out[n-1].Len += e.Len
			continue
		}
		out = append(out, e)
	}
	return out
}

func asDamage(err error) (*Damage, bool) {
	var d *Damage
	ok := errors.As(err, &d)
	return d, ok
}
