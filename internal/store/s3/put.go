package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/minio/minio-go/v7"

	"github.com/qbackup/qbackup/internal/store"
)

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	return s.put(ctx, key, body, body.CRC32C(), o, !s.o.Unconditional)
}

// PutOver sends body without the condition, so that a service that allows it
// replaces the object. It exists for the probe, on keys that hold nothing.
func (s *Store) PutOver(ctx context.Context, key string, body store.Body) error {
	return s.put(ctx, key, body, body.CRC32C(), store.PutOptions{}, false)
}

// PutClaiming sends body with a checksum that may be wrong, which a service must
// refuse. It exists for the probe.
func (s *Store) PutClaiming(ctx context.Context, key string, body store.Body, crc32c uint32) error {
	return s.put(ctx, key, body, crc32c, store.PutOptions{}, !s.o.Unconditional)
}

func (s *Store) put(ctx context.Context, key string, body store.Body, crc uint32, o store.PutOptions, conditional bool) error {
	if err := store.CheckKey("put", key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return store.Fail("put", key, nil, err, "")
	}
	opts := minio.PutObjectOptions{
		StorageClass:         s.o.storageClass(o.Class),
		ServerSideEncryption: s.sse,
		DisableContentSha256: true,
		DisableMultipart:     true,
	}
	if conditional {
		opts.SetMatchETagExcept("*")
	}
	if s.o.Checksum == CRC32C {
		// A name that begins with X-Amz- goes out as it is, not as metadata.
		opts.UserMetadata = map[string]string{"X-Amz-Checksum-Crc32c": encodeCRC(crc)}
	}
	ctx, dog := watch(ctx, s.o.Stall)
	defer dog.stop()
	sent := &sender{r: body.Reader(), kick: dog.kick}
	defer sent.close()
	_, err := s.core.PutObject(ctx, s.o.Bucket, s.prefix+key, sent, body.Size(), "", "", opts)
	if err != nil {
		return s.classify(ctx, "put", key, err)
	}
	s.bucket.Store(true)
	return nil
}

// encodeCRC is the base64 of the four bytes, most significant first (Amazon S3
// API reference, PutObject, x-amz-checksum-crc32c).
func encodeCRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// sender is the body of a request. HTTP clients may go on reading a body after
// the call has returned, for instance when the answer came early; the caller of
// Put may by then have filled the bytes anew. close ends that.
type sender struct {
	kick func()
	mu   sync.Mutex
	r    io.ReadSeeker
	done bool
}

var errSent = errors.New("body read after the call returned")

// Read implements io.Reader.
func (s *sender) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return 0, errSent
	}
	s.kick()
	return s.r.Read(p)
}

// Seek implements io.Seeker.
func (s *sender) Seek(off int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return 0, errSent
	}
	return s.r.Seek(off, whence)
}

func (s *sender) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
}
