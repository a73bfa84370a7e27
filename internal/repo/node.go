package repo

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

type nodeKey struct {
	machine ident.MachineName
	ref     format.NodeRef
}

type windowKey struct {
	object string
	number int64
}

// Nodes gives the map nodes of a machine's points: each checked against the hash
// in its reference, and kept. It is safe for parallel use.
func (r *Repository) Nodes(machine ident.MachineName) blockmap.Source {
	return nodes{r, machine}
}

type nodes struct {
	r       *Repository
	machine ident.MachineName
}

// Node implements blockmap.Source.
func (n nodes) Node(ctx context.Context, ref format.NodeRef) (*format.Node, error) {
	return n.r.nodes.Get(ctx, nodeKey{n.machine, ref}, func() (*format.Node, error) {
		return n.r.fetchNode(ctx, format.MapKey(n.machine, ref.Run, ref.Object), ref)
	})
}

// fetchNode reads a node, a second time when its bytes are wrong: then they were
// not spoiled in the store but on the way.
func (r *Repository) fetchNode(ctx context.Context, key string, ref format.NodeRef) (*format.Node, error) {
	node, err := r.readNode(ctx, key, ref)
	if isDamage(err) {
		r.dropWindows(key, ref)
		node, err = r.readNode(ctx, key, ref)
	}
	if isDamage(err) {
		r.dropWindows(key, ref)
	}
	return node, judgeAt(key, int64(ref.Offset), int64(ref.Length), err)
}

func (r *Repository) readNode(ctx context.Context, key string, ref format.NodeRef) (*format.Node, error) {
	raw := make([]byte, 0, ref.Length)
	end := int64(ref.Offset) + int64(ref.Length)
	for at := int64(ref.Offset); at < end; {
		window, err := r.window(ctx, key, at/nodeWindowBytes)
		if err != nil {
			return nil, err
		}
		from := at % nodeWindowBytes
		to := min(from+end-at, nodeWindowBytes)
		if to > int64(len(window)) {
			return nil, fmt.Errorf("object ends at byte %d: %w", at-from+int64(len(window)), store.ErrRange)
		}
		raw = append(raw, window[from:to]...)
		at += to - from
	}
	if err := ref.Verify(raw); err != nil {
		return nil, err
	}
	return format.ParseNode(raw)
}

// NoteSize tells the size of a map object that was listed, so that nobody has to ask for it.
func (r *Repository) NoteSize(machine ident.MachineName, run ident.RunID, seq uint32, bytes int64) {
	r.sizes.Add(format.MapKey(machine, run, seq), bytes)
}

// window fetches an aligned part of a map object.
func (r *Repository) window(ctx context.Context, key string, number int64) ([]byte, error) {
	return r.windows.Get(ctx, windowKey{key, number}, func() ([]byte, error) {
		size, err := r.sizes.Get(ctx, key, func() (int64, error) {
			info, err := r.store.Stat(ctx, key)
			return info.Size, err
		})
		if err != nil {
			return nil, err
		}
		at := number * nodeWindowBytes
		if at >= size {
			return nil, nil
		}
		return r.readRange(ctx, key, at, min(nodeWindowBytes, size-at))
	})
}

func (r *Repository) dropWindows(key string, ref format.NodeRef) {
	r.sizes.Drop(key)
	for n := int64(ref.Offset) / nodeWindowBytes; n <= (int64(ref.Offset)+int64(ref.Length)-1)/nodeWindowBytes; n++ {
		r.windows.Drop(windowKey{key, n})
	}
}
