package retry

import (
	"context"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/store"
)

// slowStore takes a while for each Put and turns away all above a number.
type slowStore struct {
	store.Store
	mu       sync.Mutex
	most, in int
}

func (s *slowStore) setMost(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = n
}

func (s *slowStore) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	s.mu.Lock()
	s.in++
	busy := s.in > s.most
	s.mu.Unlock()
	time.Sleep(10 * time.Millisecond)
	s.mu.Lock()
	s.in--
	s.mu.Unlock()
	if busy {
		return store.Fail("put", key, store.ErrBusy, nil, "")
	}
	return s.Store.Put(ctx, key, body, o)
}
