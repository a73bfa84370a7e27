package cache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestACacheKeepsToItsBudgetAndDropsWhatWasUsedLongestAgo(t *testing.T) {
	ctx := context.Background()
	c := New[int](10, func(v int) int64 { return int64(v) })
	loads := 0
	get := func(key, size int) {
		t.Helper()
		if v, err := c.Get(ctx, key, func() (int, error) { loads++; return size, nil }); err != nil || v != size {
			t.Fatalf("get %d: %d, %v", key, v, err)
		}
	}
	get(1, 4)
	get(2, 4)
	get(1, 4)
	get(3, 4)
	if _, ok := c.Peek(2); ok || c.used != 8 || loads != 3 {
		t.Errorf("2 is kept: %v; %d bytes, %d loads", ok, c.used, loads)
	}
	get(4, 11)
	if _, ok := c.Peek(4); !ok || c.used != 11 || c.order.Len() != 1 {
		t.Errorf("a value larger than the budget is not kept alone; %d bytes", c.used)
	}
	c.Add(1, 5)
	c.Add(3, 2)
	c.Add(1, 6)
	c.Drop(3)
	c.Drop(99)
	if v, ok := c.Peek(1); !ok || v != 6 || c.used != 6 || len(c.entries) != 1 || c.order.Len() != 1 {
		t.Errorf("%d, %v, %d bytes", v, ok, c.used)
	}
}

func TestManyWhoAskAtOnceLoadOnce(t *testing.T) {
	c := New[int](10, func(int) int64 { return 1 })
	var loads atomic.Int32
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			v, err := c.Get(context.Background(), 1, func() (int, error) { loads.Add(1); <-release; return 7, nil })
			if v != 7 || err != nil {
				t.Errorf("%d, %v", v, err)
			}
		})
	}
	close(release)
	wg.Wait()
	if loads.Load() != 1 {
		t.Errorf("%d loads", loads.Load())
	}
}

func TestErrorsAreNotKept(t *testing.T) {
	c := New[int](10, func(int) int64 { return 1 })
	broken := errors.New("broken")
	if _, err := c.Get(context.Background(), 1, func() (int, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if v, err := c.Get(context.Background(), 1, func() (int, error) { return 5, nil }); v != 5 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
}

func TestWhoWaitsForACancelledLoadLoadsItself(t *testing.T) {
	c := New[int](10, func(int) int64 { return 1 })
	begun, cancelled := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.Get(context.Background(), 1, func() (int, error) { close(begun); <-cancelled; return 0, context.Canceled })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the first: %v", err)
		}
	})
	<-begun
	wg.Go(func() {
		if v, err := c.Get(context.Background(), 1, func() (int, error) { return 7, nil }); v != 7 || err != nil {
			t.Errorf("the second: %d, %v", v, err)
		}
	})
	gone, end := context.WithCancel(context.Background())
	end()
	if _, err := c.Get(gone, 1, func() (int, error) { return 0, nil }); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("the third: %v", err)
	}
	close(cancelled)
	wg.Wait()
}
