package verify

import (
	"context"
	"iter"

	"golang.org/x/sync/errgroup"
)

// scratch is the memory of one worker, for as long as it works.
type scratch struct {
	object []byte // a whole object
	blocks []byte // a decoded frame
}

// whole gives n bytes for an object. The first time it takes as much as the largest object will need: buffers that grow
// leave garbage of their size behind.
func (s *scratch) whole(n, largest int64) []byte {
	if int64(cap(s.object)) < n {
		s.object = make([]byte, max(n, largest))
	}
	return s.object[:n]
}

// inParallel hands the items to n workers and returns when all are done, or with the first error.
func inParallel[T any](ctx context.Context, n int, items iter.Seq[T], work func(context.Context, *scratch, T) error) error {
	group, ctx := errgroup.WithContext(ctx)
	todo := make(chan T)
	group.Go(func() error {
		defer close(todo)
		for item := range items {
			select {
			case todo <- item:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range n {
		group.Go(func() error {
			var s scratch
			for item := range todo {
				if err := work(ctx, &s, item); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
