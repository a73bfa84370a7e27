package repo

import (
	"context"
	"fmt"
	"io"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// manifestKey names a manifest by its hash too: the same key with another hash is
// another manifest, and wrong.
type manifestKey struct {
	machine ident.MachineName
	run     ident.RunID
	hash    format.Hash
}

func manifestSize(m *format.Manifest) int64 {
	return 200 + int64(len(m.Packs))*64 + int64(len(m.Maps))*48 + int64(len(m.Runs))*48
}

// manifest gives the manifest of a run, checked against the hash that a record or
// another manifest has for it.
func (r *Repository) manifest(ctx context.Context, machine ident.MachineName, run ident.RunID, hash format.Hash) (*format.Manifest, error) {
	k := manifestKey{machine, run, hash}
	return r.manifests.Get(ctx, k, func() (*format.Manifest, error) {
		if m := r.localManifest(k); m != nil {
			return m, nil
		}
		return r.fetchManifest(ctx, k)
	})
}

// knownManifest gives a manifest only when no request is needed for it.
func (r *Repository) knownManifest(machine ident.MachineName, run ident.RunID, hash format.Hash) *format.Manifest {
	k := manifestKey{machine, run, hash}
	if m, ok := r.manifests.Peek(k); ok {
		return m
	}
	m := r.localManifest(k)
	if m != nil {
		r.manifests.Add(k, m)
	}
	return m
}

func (r *Repository) localManifest(k manifestKey) *format.Manifest {
	name := r.localName(k.machine, k.run, manifestFile)
	b, ok := r.local.read(name)
	if !ok {
		return nil
	}
	m, err := r.parseManifest(b, k)
	if err != nil {
		r.local.drop(name)
		return nil
	}
	return m
}

func (r *Repository) fetchManifest(ctx context.Context, k manifestKey) (*format.Manifest, error) {
	key := format.ManifestKey(k.machine, k.run)
	read := func() (*format.Manifest, error) {
		b, err := store.ReadAll(ctx, r.store, key, format.MaxObjectBytes)
		if err != nil {
			return nil, err
		}
		m, err := r.parseManifest(b, k)
		if err == nil {
			r.local.write(r.localName(k.machine, k.run, manifestFile), b)
		}
		return m, err
	}
	m, err := read()
	if isDamage(err) {
		m, err = read()
	}
	return m, judge(key, err)
}

func (r *Repository) parseManifest(b []byte, k manifestKey) (*format.Manifest, error) {
	if got := format.SumHash(b); got != k.hash {
		return nil, fmt.Errorf("its hash is %s, its reference says %s: %w", got, k.hash, format.ErrCorrupt)
	}
	return format.ParseManifest(b, r.identity(k.machine, ident.MachineID{}, k.run))
}

// readRange reads n bytes of an object.
func (r *Repository) readRange(ctx context.Context, key string, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	if err := r.readInto(ctx, key, off, b); err != nil {
		return nil, err
	}
	return b, nil
}

// readInto fills b with bytes of an object.
func (r *Repository) readInto(ctx context.Context, key string, off int64, b []byte) error {
	body, err := r.store.Get(ctx, key, off, int64(len(b)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, b); err != nil {
		return store.Wrap("get", key, err)
	}
	return nil
}
