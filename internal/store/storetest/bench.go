package storetest

import (
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/store"
)

// Bench measures Put and Get of one body, by one caller and by four at once. The
// objects of an iteration are deleted outside the clock.
func Bench(b *testing.B, s store.Store, body store.Body) {
	var n atomic.Int64
	for _, callers := range []int{1, 4} {
		var keys []string
		b.Run(fmt.Sprintf("put/callers=%d", callers), func(b *testing.B) {
			b.SetBytes(body.Size() * int64(callers))
			for b.Loop() {
				batch := make([]string, callers)
				var g errgroup.Group
				for i := range batch {
					batch[i] = fmt.Sprintf("bench/o%d", n.Add(1))
					g.Go(func() error { return s.Put(b.Context(), batch[i], body, store.PutOptions{Class: store.Data}) })
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				dropAll(b, s, keys)
				keys = batch
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("get/callers=%d", callers), func(b *testing.B) {
			b.SetBytes(body.Size() * int64(callers))
			for b.Loop() {
				var g errgroup.Group
				for _, key := range keys {
					g.Go(func() error {
						r, err := s.Get(b.Context(), key, 0, -1)
						if err != nil {
							return err
						}
						defer r.Close()
						_, err = io.Copy(io.Discard, r)
						return err
					})
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
			}
		})
		dropAll(b, s, keys)
	}
}

func dropAll(b *testing.B, s store.Store, keys []string) {
	b.Helper()
	if err := s.Delete(b.Context(), keys); err != nil {
		b.Fatal(err)
	}
}
