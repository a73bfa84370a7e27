package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// create puts a small document whose bytes nobody else can have (they hold a
// random id), and gives what lies under the key then: ours, or what was there
// before. The answer to the PUT does not decide, the GET does: answers get lost,
// and a server may ignore the condition.
func create(ctx context.Context, s store.Store, key string, body []byte) (found []byte, mine bool, err error) {
	putErr := s.Put(ctx, key, store.NewBody(body), store.PutOptions{})
	found, err = store.ReadAll(ctx, s, key, format.MaxDocumentBytes)
	switch {
	case err == nil:
		return found, bytes.Equal(found, body), nil
	case putErr != nil && !errors.Is(putErr, store.ErrExists):
		return nil, false, putErr
	}
	return nil, false, fmt.Errorf("read back %s: %w", key, err)
}

// readDocument reads and parses a document, a second time when its bytes are wrong:
// they may have been spoiled on the way. A missing one is store.ErrNotFound. The
// caller gives the error its class.
func readDocument[T any](ctx context.Context, s store.Store, key string, parse func([]byte) (T, error)) (T, error) {
	read := func() (v T, err error) {
		b, err := store.ReadAll(ctx, s, key, format.MaxDocumentBytes)
		if err != nil {
			return v, err
		}
		return parse(b)
	}
	v, err := read()
	if isDamage(err) && !errors.Is(err, store.ErrNotFound) {
		v, err = read()
	}
	return v, err
}

// send puts an object whose key only this run uses. Answers get lost: when the key
// is taken, the object under it must be the one that was sent. It is not a
// condition of the design that the next number is taken then: the number is part
// of the bytes, run ids are random and used once, so other bytes mean that
// somebody else writes as this run, and the run fails.
func send(ctx context.Context, s store.Store, key string, body []byte, class store.ObjectClass) error {
	err := s.Put(ctx, key, store.NewBody(body), store.PutOptions{Class: class})
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	found, readErr := store.ReadAll(ctx, s, key, format.MaxObjectBytes)
	switch {
	case errors.Is(readErr, store.ErrCorrupt):
		return fmt.Errorf("put %s: %w: %w", key, ErrConflict, readErr)
	case readErr != nil:
		return errors.Join(err, readErr)
	case !bytes.Equal(found, body):
		return fmt.Errorf("put %s: %w", key, ErrConflict)
	}
	return nil
}
