// Package cache keeps values in memory that are dear to fetch: the ones used last, up to a budget in bytes.
//
// It leaves to others what the values are and where they come from.
//
// Concurrency: a Cache may be used in parallel. Values are shared, so nobody may change them.
package cache

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// Cache keeps the values that were used last, bounded by their bytes or to one
// value, and loads each missing one once however many ask for it.
type Cache[K comparable, V any] struct {
	budget int64
	size   func(V) int64

	mu      sync.Mutex
	used    int64
	entries map[K]*list.Element // of *entry
	order   list.List           // front: used last
	loading map[K]*load[V]
}

type entry[K comparable, V any] struct {
	key   K
	value V
	bytes int64
}

type load[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// New makes a cache of at most budgetBytes, by what size says of each value.
func New[K comparable, V any](budgetBytes int64, size func(V) int64) *Cache[K, V] {
	return &Cache[K, V]{budget: budgetBytes, size: size, entries: map[K]*list.Element{}, loading: map[K]*load[V]{}}
}

// Get gives the value of a key, loading it when it is not here. Errors are not
// kept. Who waits for another's load goes on alone when that was cancelled.
func (c *Cache[K, V]) Get(ctx context.Context, key K, fetch func() (V, error)) (V, error) {
	for {
		c.mu.Lock()
		if v, ok := c.find(key); ok {
			c.mu.Unlock()
			return v, nil
		}
		l, waiting := c.loading[key]
		if !waiting {
			l = &load[V]{done: make(chan struct{})}
			c.loading[key] = l
		}
		c.mu.Unlock()
		if !waiting {
			return c.run(key, l, fetch)
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
		if l.err == nil || !errors.Is(l.err, context.Canceled) && !errors.Is(l.err, context.DeadlineExceeded) {
			return l.value, l.err
		}
		if err := ctx.Err(); err != nil {
			return l.value, err
		}
	}
}

func (c *Cache[K, V]) run(key K, l *load[V], fetch func() (V, error)) (V, error) {
	l.err = errors.New("load ended without a result") // seen only if fetch panics
	defer func() {
		c.mu.Lock()
		delete(c.loading, key)
		if l.err == nil {
			c.put(key, l.value)
		}
		c.mu.Unlock()
		close(l.done)
	}()
	l.value, l.err = fetch()
	return l.value, l.err
}

// Peek gives a value that is here.
func (c *Cache[K, V]) Peek(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(key)
}

// Add keeps a value that was made without Get.
func (c *Cache[K, V]) Add(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(key, value)
}

// Drop forgets a value.
func (c *Cache[K, V]) Drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		c.remove(e)
	}
}

func (c *Cache[K, V]) find(key K) (V, bool) {
	e, ok := c.entries[key]
	if !ok {
		var none V
		return none, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry[K, V]).value, true
}

func (c *Cache[K, V]) put(key K, value V) {
	if e, ok := c.entries[key]; ok {
		c.remove(e)
	}
	n := c.size(value)
	c.entries[key] = c.order.PushFront(&entry[K, V]{key, value, n})
	c.used += n
	// One value larger than the budget is kept alone: fetching a large manifest
	// again for each block would take for ever.
	for c.used > c.budget && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

func (c *Cache[K, V]) remove(e *list.Element) {
	old := c.order.Remove(e).(*entry[K, V])
	delete(c.entries, old.key)
	c.used -= old.bytes
}
