package repo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/cache"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// Options of Open. The zero value is usable.
type Options struct {
	Cache          *IndexCache      // nil: pack indexes are fetched each time
	NodeCacheBytes int64            // 0: DefaultNodeCacheBytes
	Clock          func() time.Time // nil: time.Now
	Random         io.Reader        // nil: crypto/rand
}

// InitOptions of Init. The zero value is usable.
type InitOptions struct {
	Options
	BlockBytes int64 // 0: format.DefaultBlockBytes; ignored when the repository exists
	Tool       string
}

// Repository is an open repository.
type Repository struct {
	store      store.Store
	descriptor format.Descriptor
	hasher     *format.BlockHasher
	codec      *format.Codec
	clock      func() time.Time
	random     io.Reader

	local     *IndexCache
	nodes     *cache.Cache[nodeKey, *format.Node]
	windows   *cache.Cache[windowKey, []byte]
	sizes     *cache.Cache[string, int64]
	manifests *cache.Cache[manifestKey, *format.Manifest]
	indexes   *cache.Cache[indexKey, *format.PackIndex]
	frames    *cache.Cache[frameKey, []byte]
	scratches sync.Pool // of *scratch
}

// Init makes a repository in an empty place, and reports whether it did. A
// repository that is there already, also one that somebody else made just now, is
// opened and not changed. A place with other things in it is refused (ErrFormat).
func Init(ctx context.Context, s store.Store, o InitOptions) (*Repository, bool, error) {
	r, err := Open(ctx, s, o.Options)
	if !errors.Is(err, ErrNoRepository) {
		return r, false, err
	}
	random := o.Random
	if random == nil {
		random = rand.Reader
	}
	d := format.Descriptor{Generation: 1, BlockBytes: o.BlockBytes, Codec: format.CodecZstd, Tool: o.Tool, Created: clockOf(o.Options)()}
	if d.BlockBytes == 0 {
		d.BlockBytes = format.DefaultBlockBytes
	}
	if d.Repository, err = format.NewRepositoryID(random); err != nil {
		return nil, false, err
	}
	if _, err := io.ReadFull(random, d.HashKey[:]); err != nil {
		return nil, false, fmt.Errorf("read random bytes for the hash key: %w", err)
	}
	body, err := format.AppendDescriptor(nil, &d)
	if err != nil {
		return nil, false, fmt.Errorf("make the descriptor: %w", err)
	}
	_, mine, err := create(ctx, s, format.RepositoryKey(1), body)
	if err != nil {
		return nil, false, fmt.Errorf("create the repository: %w", err)
	}
	r, err = Open(ctx, s, o.Options)
	return r, mine && err == nil, err
}

// Open opens a repository. ErrNoRepository: there is nothing; ErrFormat: there is
// something else, or a version that this program does not know; ErrDamaged: the
// descriptor is missing or spoiled.
func Open(ctx context.Context, s store.Store, o Options) (*Repository, error) {
	generation, err := newestGeneration(ctx, s)
	if err != nil {
		return nil, err
	}
	key := format.RepositoryKey(generation)
	ours := true
	d, err := readDocument(ctx, s, key, func(b []byte) (*format.Descriptor, error) {
		ours = looksOurs(b)
		return format.ParseDescriptor(b, generation)
	})
	switch {
	case err != nil && !ours:
		return nil, fmt.Errorf("%s holds something else: %w; give another folder or prefix", key, ErrFormat)
	case err != nil:
		return nil, judge(key, err)
	}
	return newRepository(s, d, o)
}

func newRepository(s store.Store, d *format.Descriptor, o Options) (*Repository, error) {
	codec, err := format.NewCodec(d.BlockBytes, runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, err
	}
	r := &Repository{
		store: s, descriptor: *d, codec: codec, hasher: format.NewBlockHasher(d.HashKey),
		clock: clockOf(o), random: o.Random, local: o.Cache,
	}
	if r.random == nil {
		r.random = rand.Reader
	}
	nodeBytes := o.NodeCacheBytes
	if nodeBytes == 0 {
		nodeBytes = DefaultNodeCacheBytes
	}
	r.nodes = cache.New[nodeKey](nodeBytes, (*format.Node).SizeBytes)
	r.windows = cache.New[windowKey](windowCacheBytes, func(b []byte) int64 { return int64(cap(b)) })
	r.sizes = cache.New[string](1<<20, func(int64) int64 { return 200 })
	r.manifests = cache.New[manifestKey](manifestMemoryBytes, manifestSize)
	r.indexes = cache.New[indexKey](indexMemoryBytes, (*format.PackIndex).SizeBytes)
	r.frames = cache.New[frameKey](frameCacheBytes, func(b []byte) int64 { return int64(cap(b)) })
	return r, nil
}

func clockOf(o Options) func() time.Time {
	if o.Clock == nil {
		return time.Now
	}
	return o.Clock
}

// newestGeneration finds the descriptor that counts. Without one it tells what the
// place holds instead.
func newestGeneration(ctx context.Context, s store.Store) (uint64, error) {
	newest, foreign := uint64(0), ""
	for info, err := range s.List(ctx, format.RepositoryPrefix) {
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("look for the repository: %w", err)
		}
		if key, err := format.ParseKey(info.Key); err == nil {
			newest = max(newest, key.Generation)
		} else {
			foreign = info.Key
		}
	}
	if newest > 0 {
		return newest, nil
	}
	for info, err := range s.List(ctx, "") {
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("look for the repository: %w", err)
		}
		if strings.HasPrefix(info.Key, format.ProbePrefix) {
			continue
		}
		if _, err := format.ParseKey(info.Key); err == nil {
			return 0, &Damage{Key: format.RepositoryKey(1), Offset: -1, Err: fmt.Errorf("it is missing, but there is %s: %w", info.Key, store.ErrNotFound)}
		}
		foreign = info.Key
		break
	}
	if foreign != "" {
		return 0, fmt.Errorf("the place holds %s: %w; give another folder or prefix", foreign, ErrFormat)
	}
	return 0, fmt.Errorf("%w; `qbackup init` makes one", ErrNoRepository)
}

// looksOurs reports whether bytes that are no descriptor might have been one:
// empty or cut off, or with a beginning or an end of ours.
func looksOurs(b []byte) bool {
	const first, last = "qbackup ", "\nblake3 "
	return len(b) < len(first) && strings.HasPrefix(first, string(b)) || bytes.HasPrefix(b, []byte(first)) || bytes.Contains(b, []byte(last))
}

// ID is the random identity of the repository.
func (r *Repository) ID() format.RepositoryID { return r.descriptor.Repository }

// BlockBytes is the size of a block.
func (r *Repository) BlockBytes() int64 { return r.descriptor.BlockBytes }

// Hasher hashes blocks with the repository's key.
func (r *Repository) Hasher() *format.BlockHasher { return r.hasher }

// Codec compresses and decompresses frames.
func (r *Repository) Codec() *format.Codec { return r.codec }

// Store is where the repository lies.
func (r *Repository) Store() store.Store { return r.store }

// Descriptor says what the repository is.
func (r *Repository) Descriptor() format.Descriptor { return r.descriptor }

// checkWrite refuses to write into a repository of a later version.
func (r *Repository) checkWrite() error {
	if err := r.descriptor.CheckWrite(); err != nil {
		return fmt.Errorf("%w: %w; use a newer qbackup", ErrFormat, err)
	}
	return nil
}
