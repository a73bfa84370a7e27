package repo

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

type indexKey struct {
	machine ident.MachineName
	run     ident.RunID
	seq     uint32
	hash    format.Hash
}

// packIndex gives the index of a pack, checked against its manifest's entry.
func (r *Repository) packIndex(ctx context.Context, machine ident.MachineName, run ident.RunID, e format.PackEntry) (*format.PackIndex, error) {
	k := indexKey{machine, run, e.Seq, e.IndexHash}
	return r.indexes.Get(ctx, k, func() (*format.PackIndex, error) {
		if x := r.localIndex(k, e); x != nil {
			return x, nil
		}
		return r.fetchIndex(ctx, k, e)
	})
}

// knownIndex gives the index of a pack only when no request is needed for it.
func (r *Repository) knownIndex(machine ident.MachineName, run ident.RunID, e format.PackEntry) *format.PackIndex {
	k := indexKey{machine, run, e.Seq, e.IndexHash}
	if x, ok := r.indexes.Peek(k); ok {
		return x
	}
	x := r.localIndex(k, e)
	if x != nil {
		r.indexes.Add(k, x)
	}
	return x
}

func (r *Repository) localIndex(k indexKey, e format.PackEntry) *format.PackIndex {
	name := r.localName(k.machine, k.run, packFile(k.seq))
	tail, ok := r.local.read(name)
	if !ok {
		return nil
	}
	x, err := format.ParsePackIndex(tail, e, r.BlockBytes())
	if err != nil {
		r.local.drop(name)
		return nil
	}
	return x
}

func (r *Repository) fetchIndex(ctx context.Context, k indexKey, e format.PackEntry) (*format.PackIndex, error) {
	key := format.PackKey(k.machine, k.run, k.seq)
	at, n := int64(e.IndexOffset), e.Bytes-int64(e.IndexOffset)
	read := func() (*format.PackIndex, error) {
		tail, err := r.readRange(ctx, key, at, n)
		if err != nil {
			return nil, err
		}
		x, err := format.ParsePackIndex(tail, e, r.BlockBytes())
		if err == nil {
			r.local.write(r.localName(k.machine, k.run, packFile(k.seq)), tail)
		}
		return x, err
	}
	x, err := read()
	if isDamage(err) {
		x, err = read()
	}
	return x, judgeAt(key, at, n, err)
}

// entryOf gives a manifest's entry for a pack that a map refers to.
func entryOf(m *format.Manifest, machine ident.MachineName, run ident.RunID, seq uint32) (format.PackEntry, error) {
	e, ok := m.Pack(seq)
	if !ok {
		return e, &Damage{Key: format.ManifestKey(machine, run), Offset: -1, Err: fmt.Errorf("it does not name pack %d, to which a map refers: %w", seq, format.ErrCorrupt)}
	}
	return e, nil
}
