package location

import (
	"context"
	"io"
	"os"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/store/limit"
	"github.com/qbackup/qbackup/internal/store/observe"
	"github.com/qbackup/qbackup/internal/store/retry"
	"github.com/qbackup/qbackup/internal/store/s3"
)

// Options of Open. The zero value is the usual one.
type Options struct {
	Create bool                // make a missing folder; buckets are never made
	Stats  *observe.Stats      // nil: not counted
	Limit  limit.Options       //
	Retry  retry.Options       // OnRetry is told besides the counting
	S3     s3.Options          // what address and environment do not say
	FS     dir.FS              // nil: that of the operating system
	Getenv func(string) string // nil: os.Getenv
}

// Store is a store with everything around it.
type Store struct {
	store.Store
	close func() error
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Wrapper = (*Store)(nil)
	_ io.Closer     = (*Store)(nil)
)

// Unwrap implements store.Wrapper.
func (s *Store) Unwrap() store.Store { return s.Store }

// Close drops idle connections. Close when no call runs any more.
func (s *Store) Close() error { return s.close() }

// Open returns the store at l. It asks a folder whether it is there, and a bucket
// nothing: the first call will tell. The folder's retries are those of network
// file systems; a local one has no transient errors.
func Open(ctx context.Context, l Location, o Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, store.Fail("open", "", nil, err, "")
	}
	driver, closer, err := l.driver(o)
	if err != nil {
		return nil, err
	}
	s := driver
	if o.Stats != nil {
		s = observe.New(s, o.Stats)
		told := o.Retry.OnRetry
		o.Retry.OnRetry = func(e retry.Event) {
			o.Stats.Retries.Add(1)
			if told != nil {
				told(e)
			}
		}
	}
	if o.Limit.Limited() {
		s = limit.New(s, o.Limit)
	}
	return &Store{Store: retry.New(s, o.Retry), close: closer}, nil
}

func (l Location) driver(o Options) (store.Store, func() error, error) {
	if l.Bucket == "" {
		s, err := dir.Open(l.Path, dir.Options{Create: o.Create, FS: o.FS})
		return s, func() error { return nil }, err
	}
	getenv := o.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	opts := o.S3
	opts.Bucket, opts.Prefix, opts.Endpoint, opts.Secure = l.Bucket, l.Prefix, l.Host, l.Secure
	opts, err := s3.FromEnvironment(opts, getenv)
	if err != nil {
		return nil, nil, err
	}
	s, err := s3.Open(opts)
	if err != nil {
		return nil, nil, err
	}
	return s, s.Close, nil
}
