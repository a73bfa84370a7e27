package mem

import (
	"bytes"
	"context"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// Store is a store.Store in memory.
type Store struct {
	now     func() time.Time
	mu      sync.RWMutex
	objects map[string]object
}

type object struct {
	b        []byte
	modified time.Time
}

var _ store.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store { return NewWithClock(time.Now) }

// NewWithClock returns an empty store that dates its objects by now, which
// stands for the clock of the server.
func NewWithClock(now func() time.Time) *Store {
	return &Store{now: now, objects: map[string]object{}}
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, body store.Body, _ store.PutOptions) error {
	if err := begin(ctx, "put", key); err != nil {
		return err
	}
	b := bytes.Clone(body.Bytes())
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[key]; ok {
		return store.Fail("put", key, store.ErrExists, nil, "")
	}
	s.objects[key] = object{b, s.now()}
	return nil
}

// Replace sets an object whatever was there. It is not part of store.Store: with
// it tests play a server that loses, damages or overwrites objects.
func (s *Store) Replace(key string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[key] = object{bytes.Clone(b), s.now()}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	o, err := s.find(ctx, "get", key)
	if err != nil {
		return nil, err
	}
	n, err = store.CheckRange(key, off, n, int64(len(o.b)))
	if err != nil {
		return nil, err
	}
	r := &reader{ended: ctx.Err, r: bytes.NewReader(o.b[off : off+n])}
	return store.Exact(r, key, n, store.ErrCorrupt), nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	o, err := s.find(ctx, "stat", key)
	if err != nil {
		return store.Info{}, err
	}
	return store.Info{Key: key, Size: int64(len(o.b)), Modified: o.modified}, nil
}

// List implements store.Store. It yields the objects of one instant.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := store.CheckPrefix(prefix); err != nil {
			yield(store.Info{}, err)
			return
		}
		for _, info := range s.matches(prefix) {
			if err := ctx.Err(); err != nil {
				yield(store.Info{}, store.Fail("list", prefix, nil, err, ""))
				return
			}
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (s *Store) matches(prefix string) []store.Info {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []store.Info
	for key, o := range s.objects {
		if strings.HasPrefix(key, prefix) {
			found = append(found, store.Info{Key: key, Size: int64(len(o.b)), Modified: o.modified})
		}
	}
	slices.SortFunc(found, func(a, b store.Info) int { return strings.Compare(a.Key, b.Key) })
	return found
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := begin(ctx, "delete", key); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.objects, key)
		s.mu.Unlock()
	}
	return nil
}

func (s *Store) find(ctx context.Context, op, key string) (object, error) {
	if err := begin(ctx, op, key); err != nil {
		return object{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.objects[key]
	if !ok {
		return object{}, store.Fail(op, key, store.ErrNotFound, nil, "")
	}
	return o, nil
}

func begin(ctx context.Context, op, key string) error {
	if err := store.CheckKey(op, key); err != nil {
		return err
	}
	return store.Fail(op, key, nil, ctx.Err(), "")
}

// reader ends with the context, as the readers of slower stores do.
type reader struct {
	ended func() error
	r     *bytes.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ended(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (r *reader) Close() error { return nil }
