package observe

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// Store counts the calls of another store.
type Store struct {
	inner store.Store
	stats *Stats
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Wrapper = (*Store)(nil)
)

// New wraps inner and counts in stats.
func New(inner store.Store, stats *Stats) *Store { return &Store{inner, stats} }

// Unwrap implements store.Wrapper.
func (s *Store) Unwrap() store.Store { return s.inner }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	start := time.Now()
	err := s.inner.Put(ctx, key, body, o)
	s.stats.record(Put, err, time.Since(start))
	if err == nil {
		s.stats.BytesSent.Add(body.Size())
	}
	return err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	start := time.Now()
	r, err := s.inner.Get(ctx, key, off, n)
	s.stats.record(Get, err, time.Since(start))
	if err != nil {
		return nil, err
	}
	return &reader{r, s.stats}, nil
}

type reader struct {
	io.ReadCloser
	stats *Stats
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.stats.BytesReceived.Add(int64(n))
	return n, err
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	start := time.Now()
	info, err := s.inner.Stat(ctx, key)
	s.stats.record(Stat, err, time.Since(start))
	return info, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		start := time.Now()
		var last error
		for info, err := range s.inner.List(ctx, prefix) {
			last = err
			if !yield(info, err) {
				break
			}
		}
		s.stats.record(List, last, time.Since(start))
	}
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	start := time.Now()
	err := s.inner.Delete(ctx, keys)
	s.stats.record(Delete, err, time.Since(start))
	return err
}
