package probe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// Clock tells the time by the clock of the store, and whether the store refuses to replace an object, by writing one of a
// few bytes twice. key is where it lies; the caller may delete it.
func Clock(ctx context.Context, s store.Store) (now time.Time, createOnly bool, key string, err error) {
	key = folder + "clock-" + strings.ToLower(rand.Text())
	fail := func(err error) (time.Time, bool, string, error) {
		return time.Time{}, false, key, fmt.Errorf("ask the store for the time: %w", err)
	}
	// The bodies differ: a store that tries again may take equal bytes for its own earlier attempt.
	if err := s.Put(ctx, key, store.NewBody([]byte("first\n")), store.PutOptions{}); err != nil {
		return fail(err)
	}
	second := s.Put(ctx, key, store.NewBody([]byte("second\n")), store.PutOptions{})
	if second != nil && !errors.Is(second, store.ErrExists) {
		return fail(second)
	}
	info, err := s.Stat(ctx, key)
	if err != nil {
		return fail(err)
	}
	return info.Modified, second != nil, key, nil
}
