package s3

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/qbackup/qbackup/internal/store"
)

// Store is a store.Store in a bucket.
type Store struct {
	o      Options
	core   minio.Core
	idle   func() // closes idle connections
	prefix string // "" or ends with a slash
	sse    encrypt.ServerSide
	bucket atomic.Bool // an answer has shown that the bucket exists
}

var _ store.Store = (*Store)(nil)

// Open returns the store that o describes. It makes no request, but reading
// credentials may run the program that a profile names.
func Open(o Options) (*Store, error) {
	s, err := open(o)
	if err != nil {
		return nil, store.Fail("open", "", store.ErrInvalid, err, "")
	}
	return s, nil
}

func open(o Options) (*Store, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	sse, err := o.encryption()
	if err != nil {
		return nil, err
	}
	client, err := minio.New(o.Endpoint, &minio.Options{
		Creds:        o.Credentials.provider,
		Secure:       o.Secure,
		Transport:    transport,
		Region:       o.Region,
		BucketLookup: o.lookup(),
		MaxRetries:   1, // that is, one attempt
		// Trailers stay off: with them the client would add its own checksum
		// to every PUT that does not bring one.
		TrailingHeaders: false,
	})
	if err != nil {
		return nil, err
	}
	client.SetAppInfo("qbackup", "1")
	s := &Store{o: o, core: minio.Core{Client: client}, idle: transport.CloseIdleConnections, sse: sse}
	if o.Prefix != "" {
		s.prefix = o.Prefix + "/"
	}
	return s, nil
}

// Close drops idle connections. Calls that run, and later ones, are not hurt.
func (s *Store) Close() error {
	s.idle()
	return nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := store.CheckKey("stat", key); err != nil {
		return store.Info{}, err
	}
	ctx, dog := watch(ctx, s.o.Stall)
	defer dog.stop()
	info, err := s.core.StatObject(ctx, s.o.Bucket, s.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		err = s.classify(ctx, "stat", key, err)
		return store.Info{}, s.missing(ctx, key, err)
	}
	s.bucket.Store(true)
	return store.Info{Key: key, Size: info.Size, Modified: info.LastModified}, nil
}

// missing looks closer at a "not found": the answer to HEAD has no body to tell a
// missing object from a missing bucket, which must not pass for an empty one (I7).
func (s *Store) missing(ctx context.Context, key string, err error) error {
	if s.bucket.Load() || minio.ToErrorResponse(cause(err)).StatusCode != http.StatusNotFound {
		return err
	}
	exists, bucketErr := s.core.BucketExists(ctx, s.o.Bucket)
	switch {
	case bucketErr != nil && minio.ToErrorResponse(bucketErr).StatusCode == http.StatusForbidden:
		return err // may not ask; the object is not there, and PUT will tell more
	case bucketErr != nil:
		return s.classify(ctx, "stat", key, bucketErr)
	case !exists:
		return s.noBucket("stat", key, err)
	}
	s.bucket.Store(true)
	return err
}

func (s *Store) key(objectName string) (string, bool) {
	key, ok := strings.CutPrefix(objectName, s.prefix)
	return key, ok && store.ValidKey(key)
}
