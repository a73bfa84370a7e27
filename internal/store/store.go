package store

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
)

// Store is a set of immutable objects. All methods are safe for parallel use,
// and all but Put may be repeated at will. Errors are *Error and match one of
// the sentinels of this package, or the error of ctx, where their class is known.
type Store interface {
	// Put creates the object key, all or nothing. It never replaces one: when
	// the key exists, also with the same bytes, the error is ErrExists. The
	// caller leaves the bytes of body alone until Put returns.
	Put(ctx context.Context, key string, body Body, o PutOptions) error

	// Get reads n bytes from off on; n < 0 stands for all up to the end. The
	// range must lie inside the object, else the error is ErrRange, at the call.
	// The reader yields exactly the bytes asked for: when fewer arrive, its
	// last Read returns an error other than io.EOF. The caller closes it, and
	// ctx must live until then.
	Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)

	// Stat tells size and time of one object, by one point lookup, never a
	// listing. A missing object is ErrNotFound.
	Stat(ctx context.Context, key string) (Info, error)

	// List yields the objects whose keys begin with prefix, in ascending order
	// of the keys' bytes, over all pages of the answer. The first error ends
	// it; keys out of order are one (ErrCorrupt). Without a match it yields
	// nothing.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Delete removes objects; missing ones are no error. When it fails, some
	// may be gone.
	Delete(ctx context.Context, keys []string) error
}

// Info describes an object.
type Info struct {
	Key      string
	Size     int64     // bytes
	Modified time.Time // when it was written, by the clock of the store
}

// ObjectClass tells how an object will be used, so that a store may keep the
// classes differently (S3 storage classes). It changes no semantics.
type ObjectClass uint8

const (
	Metadata ObjectClass = iota // small, read at every run
	Data                        // packs: large, read at restore only
)

// PutOptions are the properties of a new object.
type PutOptions struct {
	Class ObjectClass
}

// Limits of keys, in bytes. A segment leaves room for the decoration of names
// that the directory driver needs below the 255 bytes of Linux file systems;
// S3 allows 1,024 bytes together with the prefix of the repository.
const (
	maxKeyBytes     = 768
	maxSegmentBytes = 200
)

// ValidKey reports whether key can name an object: see the package comment.
func ValidKey(key string) bool {
	if key == "" || len(key) > maxKeyBytes {
		return false
	}
	for len(key) > 0 {
		segment, rest, more := strings.Cut(key, "/")
		if !validSegment(segment) || more && rest == "" {
			return false
		}
		key = rest
	}
	return true
}

// ValidPrefix reports whether prefix can begin a key. The empty prefix matches
// every object; a prefix need not end at a slash.
func ValidPrefix(prefix string) bool {
	return prefix == "" || ValidKey(prefix) || ValidKey(prefix+"x")
}

func validSegment(s string) bool {
	if s == "" || len(s) > maxSegmentBytes || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		ok := 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
		if !ok {
			return false
		}
	}
	return true
}

// ReadAll returns the bytes of a whole object that may have at most limit bytes;
// a larger one is ErrCorrupt, because callers know how large their objects get.
func ReadAll(ctx context.Context, s Store, key string, limit int64) ([]byte, error) {
	r, err := s.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, Wrap("get", key, err)
	}
	if int64(len(b)) > limit {
		return nil, Fail("get", key, ErrCorrupt, fmt.Errorf("object has more than %d bytes", limit), "")
	}
	return b, nil
}
