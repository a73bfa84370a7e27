package verify

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/repo/format"
)

// badFrame is neighbouring blocks of a pack that cannot be read: ordinals [first, end).
type badFrame struct {
	finding
	first, end uint32
	frames     int
}

// packs reads every pack that a point needs as a whole.
func (m *machine) packs(ctx context.Context) error {
	need := m.neededPacks(func(s *runState, used bool) bool { return s.living || used })
	largest := int64(1)
	for p := range need {
		largest = max(largest, p.entry.Bytes)
		m.expect(p.entry.Bytes)
	}
	workers := min(int64(m.o.Workers), max(packMemoryBytes/largest, 1))
	return inParallel(ctx, int(workers), need, func(ctx context.Context, work *scratch, p neededPack) error {
		return m.pack(ctx, work, p, work.whole(p.entry.Bytes, largest))
	})
}

// pack reads one pack into b; again when it is damaged, because bytes can be spoiled on their way.
func (m *machine) pack(ctx context.Context, work *scratch, p neededPack, b []byte) error {
	key := format.PackKey(m.name, p.run.run, p.entry.Seq)
	var found packDamage
	problem, err := m.twice(key, func() error {
		found = packDamage{}
		err := m.readRange(ctx, key, 0, b)
		if err == nil {
			found = m.inspect(key, b, work, p)
			err = found.first()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	m.looked(p.entry.Bytes)
	if problem == "" {
		return nil
	}
	id := packID{p.run.run, p.entry.Seq}
	switch {
	case found.lost != nil:
		m.lose(id, *found.lost)
	case found.header == nil && len(found.frames) == 0 && found.rest == nil: // it could not be read at all
		m.lose(id, wholeObject(key, "%s", problem))
	}
	for _, f := range []*finding{found.header, found.rest} {
		if f != nil {
			m.found.add(*f)
		}
	}
	for i := range found.frames {
		f := &found.frames[i]
		if f.frames > 1 {
			f.problem += fmt.Sprintf(" (and so on, %d frames in a row)", f.frames)
		}
		m.found.add(f.finding)
	}
	if len(found.frames) > 0 {
		m.mu.Lock()
		m.badFrames[id] = found.frames
		m.mu.Unlock()
	}
	return nil
}

// packDamage is what is wrong with a pack.
type packDamage struct {
	lost   *finding // its index; no block can be found without
	header *finding // every block can be read all the same
	frames []badFrame
	rest   *finding // bytes that no block depends on
}

// first gives one problem as an error, nil when the pack is sound.
func (d *packDamage) first() error {
	for _, f := range []*finding{d.lost, d.header, d.rest} {
		if f != nil {
			return fmt.Errorf("%s: %w", f.problem, format.ErrCorrupt)
		}
	}
	if len(d.frames) > 0 {
		return fmt.Errorf("%s: %w", d.frames[0].problem, format.ErrCorrupt)
	}
	return nil
}

// inspect checks all bytes of a pack: its header names it, its index is the one in the manifest, each frame gives blocks
// with the hashes in the index, and its own hash over everything.
func (m *machine) inspect(key string, b []byte, work *scratch, p neededPack) packDamage {
	var d packDamage
	e := p.entry
	at := int64(e.IndexOffset)
	x, err := format.ParsePackIndex(b[at:], e, m.r.BlockBytes())
	if err != nil {
		d.lost = &finding{key, at, e.Bytes - at, err.Error()}
		return d
	}
	h, err := format.ParsePackHeader(b)
	if err == nil {
		err = h.Check(m.identity(p.run.run), e.Seq)
	}
	if err == nil && h.BlockBytes != m.r.BlockBytes() {
		err = fmt.Errorf("it says blocks of %d bytes, the repository has blocks of %d", h.BlockBytes, m.r.BlockBytes())
	}
	if err != nil {
		d.header = &finding{key, 0, format.PackHeaderBytes, err.Error()}
	}
	for f := range x.Frames() {
		if err := m.frame(b[f.Offset:f.Offset+f.Length], work, x, f); err != nil {
			d.addFrame(key, f, err)
		}
	}
	if d.header != nil || len(d.frames) > 0 {
		return d
	}
	_, entry, _, err := format.ParsePack(b)
	if err == nil && entry != e {
		err = fmt.Errorf("its footer contradicts the manifest")
	}
	if err != nil {
		d.rest = &finding{key, -1, 0, err.Error()}
	}
	return d
}

// frame decodes one frame and compares the hash of each block.
func (m *machine) frame(compressed []byte, work *scratch, x *format.PackIndex, f format.IndexedFrame) error {
	raw, err := m.r.Codec().Decompress(work.blocks[:0], compressed, f.Blocks)
	if err != nil {
		return err
	}
	work.blocks = raw
	for i := range f.Blocks {
		ordinal := f.FirstOrdinal + uint32(i)
		block := raw[int64(i)*m.r.BlockBytes():][:m.r.BlockBytes()]
		if want, ok := x.Hash(ordinal); !ok || m.r.Hasher().Sum(block) != want {
			return fmt.Errorf("block %d of the pack does not match its hash", ordinal)
		}
	}
	return nil
}

// addFrame notes a frame that cannot be read, together with those before it that it touches.
func (d *packDamage) addFrame(key string, f format.IndexedFrame, err error) {
	end := f.FirstOrdinal + uint32(f.Blocks)
	if n := len(d.frames); n > 0 && d.frames[n-1].end == f.FirstOrdinal {
		last := &d.frames[n-1]
		last.end, last.length, last.frames = end, last.length+f.Length, last.frames+1
		return
	}
	d.frames = append(d.frames, badFrame{finding{key, f.Offset, f.Length, err.Error()}, f.FirstOrdinal, end, 1})
}
