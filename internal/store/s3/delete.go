package s3

import (
	"context"
	"slices"

	"github.com/minio/minio-go/v7"

	"github.com/qbackup/qbackup/internal/store"
)

// deleteBatch is the most that one request of S3 can delete.
const deleteBatch = 1000

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := store.CheckKey("delete", key); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(keys, deleteBatch) {
		if err := s.deleteSome(ctx, batch); err != nil {
			return err
		}
	}
	return store.Fail("delete", "", nil, ctx.Err(), "")
}

func (s *Store) deleteSome(ctx context.Context, keys []string) error {
	ctx, dog := watch(ctx, s.o.Stall)
	defer dog.stop()
	if len(keys) == 1 {
		err := s.core.RemoveObject(ctx, s.o.Bucket, s.prefix+keys[0], minio.RemoveObjectOptions{})
		return s.deleted(ctx, keys[0], err)
	}
	objects := func(yield func(minio.ObjectInfo) bool) {
		for _, key := range keys {
			if !yield(minio.ObjectInfo{Key: s.prefix + key}) {
				return
			}
		}
	}
	results, err := s.core.RemoveObjectsWithIter(ctx, s.o.Bucket, objects, minio.RemoveObjectsOptions{})
	if err != nil {
		return s.classify(ctx, "delete", "", err)
	}
	for r := range results {
		dog.kick()
		key, _ := s.key(r.ObjectName)
		if err := s.deleted(ctx, key, r.Err); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return s.classify(ctx, "delete", "", err)
	}
	return nil
}

// deleted classifies the answer for one object; a missing one is no error.
func (s *Store) deleted(ctx context.Context, key string, err error) error {
	if err == nil || minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		return nil
	}
	return s.classify(ctx, "delete", key, err)
}
