package verify

import (
	"container/list"
	"context"
	"sync"
)

// cache keeps the values that were used last, bounded by their bytes, and loads a missing one once however many ask for it.
type cache[K comparable, V any] struct {
	budget int64
	size   func(V) int64

	mu      sync.Mutex
	used    int64
	entries map[K]*list.Element // of *cached
	order   list.List           // front: used last
	loading map[K]*loading[V]
}

type cached[K comparable, V any] struct {
	key   K
	value V
	bytes int64
}

type loading[V any] struct {
	done  chan struct{}
	value V
	err   error
}

func newCache[K comparable, V any](budgetBytes int64, size func(V) int64) *cache[K, V] {
	return &cache[K, V]{budget: budgetBytes, size: size, entries: map[K]*list.Element{}, loading: map[K]*loading[V]{}}
}

// get gives the value of a key, loading it when it is not here. An error ends the whole verification, so whoever waits for
// the load of another gets its error too.
func (c *cache[K, V]) get(ctx context.Context, key K, load func() (V, error)) (V, error) {
	c.mu.Lock()
	if e, ok := c.entries[key]; ok {
		c.order.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*cached[K, V]).value, nil
	}
	l, waiting := c.loading[key]
	if !waiting {
		l = &loading[V]{done: make(chan struct{})}
		c.loading[key] = l
	}
	c.mu.Unlock()
	if waiting {
		select {
		case <-l.done:
			return l.value, l.err
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
	}
	l.value, l.err = load()
	c.mu.Lock()
	delete(c.loading, key)
	if l.err == nil {
		c.keep(key, l.value)
	}
	c.mu.Unlock()
	close(l.done)
	return l.value, l.err
}

func (c *cache[K, V]) keep(key K, value V) {
	n := c.size(value)
	c.entries[key] = c.order.PushFront(&cached[K, V]{key, value, n})
	c.used += n
	for c.used > c.budget && c.order.Len() > 1 {
		old := c.order.Remove(c.order.Back()).(*cached[K, V])
		delete(c.entries, old.key)
		c.used -= old.bytes
	}
}
