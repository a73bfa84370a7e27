package retry

import (
	"context"
	"errors"
	"io"

	"github.com/qbackup/qbackup/internal/store"
)

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	open := func(skip int64) (r io.ReadCloser, err error) {
		rest := n
		if n >= 0 {
			rest = n - skip
		}
		return s.inner.Get(ctx, key, off+skip, rest)
	}
	b := &body{attempts: s.begin("get", key)}
	b.run = func(try func() error) error { return b.attempts.run(ctx, try) }
	b.wait = func(err error) error { return b.attempts.wait(ctx, err) }
	b.open = open
	if err := b.reopen(); err != nil {
		return nil, err
	}
	return b, nil
}

// body is the content of a Get that survives broken connections.
type body struct {
	attempts *attempts
	run      func(try func() error) error
	wait     func(error) error
	open     func(skip int64) (io.ReadCloser, error)
	r        io.ReadCloser // nil after it broke
	got      int64
	err      error // final
}

func (b *body) reopen() error {
	for {
		err := b.run(func() (err error) {
			b.r, err = b.open(b.got)
			return err
		})
		if err == nil {
			return nil
		}
		if err := b.wait(err); err != nil {
			return err
		}
	}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.r == nil {
			if b.err = b.reopen(); b.err != nil {
				break
			}
		}
		n, err := b.r.Read(p)
		b.got += int64(n)
		if n > 0 {
			b.attempts.progress()
		}
		if err != nil && !errors.Is(err, store.ErrTransient) {
			b.err = err
		} else if err != nil {
			b.r.Close()
			b.r = nil
			b.err = b.wait(err)
		}
		if n > 0 || err == nil {
			return n, nil
		}
	}
	return 0, b.err
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.err == nil {
		b.err = store.Fail("get", b.attempts.key, nil, errors.New("read after close"), "")
	}
	if b.r == nil {
		return nil
	}
	err := b.r.Close()
	b.r = nil
	return err
}
