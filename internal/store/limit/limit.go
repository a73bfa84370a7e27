package limit

import (
	"context"
	"io"
	"iter"

	"golang.org/x/time/rate"

	"github.com/qbackup/qbackup/internal/store"
)

// Options are the limits; 0 is none.
type Options struct {
	UploadBytesPerSecond int64
	// Upload gives the limit of the moment, where it changes; nil: UploadBytesPerSecond.
	// It is asked often.
	Upload                 func() int64
	DownloadBytesPerSecond int64
	RequestsPerSecond      float64 // a List counts once, however many pages it has
}

// Limited reports whether any limit is set.
func (o Options) Limited() bool {
	return o.UploadBytesPerSecond > 0 || o.Upload != nil || o.DownloadBytesPerSecond > 0 || o.RequestsPerSecond > 0
}

// burstBytes is the most that goes through at once after a pause. A limiter is
// never asked for more than its burst, which would be an error; larger amounts
// are asked for in parts.
const burstBytes = 256 << 10

// Store slows the calls of another store.
type Store struct {
	inner              store.Store
	up, down, requests *rate.Limiter
	now                func() int64 // what up is set to; nil: it stays as it is
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Wrapper = (*Store)(nil)
)

// New wraps inner.
func New(inner store.Store, o Options) *Store {
	bytes := func(perSecond int64) *rate.Limiter { return rate.NewLimiter(limitOf(perSecond), burstBytes) }
	requests := rate.NewLimiter(rate.Inf, 1)
	if o.RequestsPerSecond > 0 {
		requests = rate.NewLimiter(rate.Limit(o.RequestsPerSecond), max(1, int(o.RequestsPerSecond/10)))
	}
	return &Store{inner: inner, up: bytes(o.UploadBytesPerSecond), down: bytes(o.DownloadBytesPerSecond), requests: requests, now: o.Upload}
}

func limitOf(perSecond int64) rate.Limit {
	if perSecond <= 0 {
		return rate.Inf
	}
	return rate.Limit(perSecond)
}

// upload waits until n bytes may be sent, at the rate of the moment.
func (s *Store) upload(ctx context.Context, n int64) error {
	if s.now == nil {
		return wait(ctx, s.up, n)
	}
	for n > 0 {
		if limit := limitOf(s.now()); limit != s.up.Limit() {
			s.up.SetLimit(limit)
		}
		part := min(n, burstBytes)
		if err := wait(ctx, s.up, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// Unwrap implements store.Wrapper.
func (s *Store) Unwrap() store.Store { return s.inner }

// wait takes n units from a limiter. The error is that of the context, also when
// the limiter sees at once that the deadline is too near.
func wait(ctx context.Context, l *rate.Limiter, n int64) error {
	for n > 0 && l.Limit() != rate.Inf {
		part := min(n, int64(l.Burst()))
		if err := l.WaitN(ctx, int(part)); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return context.DeadlineExceeded
		}
		n -= part
	}
	return nil
}

func (s *Store) request(ctx context.Context, op, key string) error {
	return store.Fail(op, key, nil, wait(ctx, s.requests, 1), "")
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	if err := s.request(ctx, "put", key); err != nil {
		return err
	}
	if err := s.upload(ctx, body.Size()); err != nil {
		return store.Fail("put", key, nil, err, "")
	}
	return s.inner.Put(ctx, key, body, o)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := s.request(ctx, "get", key); err != nil {
		return nil, err
	}
	r, err := s.inner.Get(ctx, key, off, n)
	if err != nil || s.down.Limit() == rate.Inf {
		return r, err
	}
	return &reader{r, func(n int) error {
		return store.Fail("get", key, nil, wait(ctx, s.down, int64(n)), "")
	}}, nil
}

type reader struct {
	io.ReadCloser
	wait func(n int) error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p[:min(len(p), burstBytes)])
	if slow := r.wait(n); slow != nil {
		return n, slow
	}
	return n, err
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := s.request(ctx, "stat", key); err != nil {
		return store.Info{}, err
	}
	return s.inner.Stat(ctx, key)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := s.request(ctx, "list", prefix); err != nil {
			yield(store.Info{}, err)
			return
		}
		s.inner.List(ctx, prefix)(yield)
	}
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	if err := s.request(ctx, "delete", ""); err != nil {
		return err
	}
	return s.inner.Delete(ctx, keys)
}
