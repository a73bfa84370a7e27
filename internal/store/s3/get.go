package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/qbackup/qbackup/internal/store"
)

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := store.CheckKey("get", key); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, store.Fail("get", key, store.ErrInvalid, fmt.Errorf("offset %d", off), "")
	}
	if n == 0 { // no range can say so
		return s.getNothing(ctx, key, off)
	}
	if n > 0 && off > maxOffset-n {
		return nil, store.Fail("get", key, store.ErrRange, fmt.Errorf("%d bytes at offset %d", n, off), "")
	}
	r, err := s.getRange(ctx, key, off, n)
	if errors.Is(err, store.ErrRange) && n < 0 {
		// A range cannot begin at the end of an object either.
		return s.getNothing(ctx, key, off)
	}
	return r, err
}

// maxOffset keeps ranges inside what an int64 can count.
const maxOffset = 1<<63 - 1

// getNothing is a Get of no bytes, which only asks whether they could be there.
func (s *Store) getNothing(ctx context.Context, key string, off int64) (io.ReadCloser, error) {
	info, err := s.Stat(ctx, key)
	var placed *store.Error
	if errors.As(err, &placed) {
		return nil, store.Fail("get", key, nil, placed.Err, placed.Hint)
	}
	if _, err := store.CheckRange(key, off, 0, info.Size); err != nil {
		return nil, err
	}
	return http.NoBody, nil
}

func (s *Store) getRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	var opts minio.GetObjectOptions
	ranged := off > 0 || n > 0
	if ranged {
		last := int64(0) // none
		if n > 0 {
			last = off + n - 1
		}
		if err := opts.SetRange(off, last); err != nil {
			return nil, store.Fail("get", key, store.ErrInvalid, err, "")
		}
	}
	ctx, dog := watch(ctx, s.o.Stall)
	body, info, header, err := s.core.GetObject(ctx, s.o.Bucket, s.prefix+key, opts)
	if err != nil {
		defer dog.stop()
		return nil, s.classify(ctx, "get", key, err)
	}
	dog.pause()
	s.bucket.Store(true)
	length, err := answered(key, off, n, ranged, info.Size, header)
	if err != nil {
		body.Close()
		dog.stop()
		return nil, err
	}
	received := &receiver{body: body, dog: dog}
	received.classify = func(err error) error { return s.classify(ctx, "get", key, err) }
	return store.Exact(received, key, length, store.ErrTransient), nil
}

// answered returns the length of the body of an answer to a Get, after checking
// that the answer is to what was asked.
func answered(key string, off, n int64, ranged bool, length int64, h http.Header) (int64, error) {
	if length < 0 {
		return 0, store.Fail("get", key, nil, errors.New("the service did not say how long the object is"), "")
	}
	if !ranged {
		return length, nil
	}
	first, total, ok := parseContentRange(h.Get("Content-Range"))
	if !ok || first != off {
		return 0, store.Fail("get", key, nil, fmt.Errorf("asked for bytes from %d on, the service answered %q", off, h.Get("Content-Range")),
			"the service, or a proxy before it, does not support ranges")
	}
	want, err := store.CheckRange(key, off, n, total)
	if err == nil && want != length {
		err = store.Fail("get", key, store.ErrTransient, fmt.Errorf("answer has %d bytes of %d", length, want), "")
	}
	return want, err
}

// parseContentRange reads "bytes FIRST-LAST/TOTAL" (RFC 9110, 14.4).
func parseContentRange(s string) (first, total int64, ok bool) {
	s, ok1 := strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(s, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok1 || !ok2 || !ok3 {
		return 0, 0, false
	}
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	total, err3 := strconv.ParseInt(size, 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || first < 0 || last < first || last >= total {
		return 0, 0, false
	}
	return first, total, true
}

// receiver is the body of an answer; its watchdog runs only while it is read.
type receiver struct {
	body     io.ReadCloser
	dog      *watchdog
	classify func(error) error
}

// Read implements io.Reader.
func (r *receiver) Read(p []byte) (int, error) {
	r.dog.kick()
	n, err := r.body.Read(p)
	r.dog.pause()
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.classify(err)
	}
	return n, err
}

// Close implements io.Closer.
func (r *receiver) Close() error {
	defer r.dog.stop()
	return r.body.Close()
}
