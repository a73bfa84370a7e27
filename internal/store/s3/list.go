package s3

import (
	"context"
	"fmt"
	"iter"

	"github.com/minio/minio-go/v7"

	"github.com/qbackup/qbackup/internal/store"
)

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := store.CheckPrefix(prefix); err != nil {
			yield(store.Info{}, err)
			return
		}
		if err := s.list(ctx, prefix, func(i store.Info) bool { return yield(i, nil) }); err != nil {
			yield(store.Info{}, err)
		}
	}
}

// list yields the objects until yield says no.
func (s *Store) list(ctx context.Context, prefix string, yield func(store.Info) bool) error {
	outer := ctx
	ctx, dog := watch(ctx, s.o.Stall)
	defer dog.stop()
	noOwner := false
	previous := ""
	for object := range s.core.ListObjectsIter(ctx, s.o.Bucket, minio.ListObjectsOptions{
		Prefix:     s.prefix + prefix,
		Recursive:  true,
		FetchOwner: &noOwner,
	}) {
		if object.Err != nil {
			return s.classify(ctx, "list", prefix, object.Err)
		}
		s.bucket.Store(true)
		if object.Key <= previous {
			return store.Fail("list", prefix, store.ErrCorrupt, fmt.Errorf("%q listed after %q", object.Key, previous),
				"the service does not list in the order that S3 requires")
		}
		previous = object.Key
		key, ok := s.key(object.Key)
		if !ok {
			continue // markers of folders, and objects of others
		}
		dog.pause()
		if !yield(store.Info{Key: key, Size: object.Size, Modified: object.LastModified}) {
			return nil
		}
		dog.kick()
	}
	// The client ends a listing in silence when the context ends.
	if err := ctx.Err(); err != nil {
		return s.classify(ctx, "list", prefix, err)
	}
	return store.Fail("list", prefix, nil, outer.Err(), "")
}
