package nbd

import (
	"context"

	"github.com/qbackup/qbackup/internal/extent"
)

// Dirty streams what the context of a dirty bitmap (see DirtyBitmap) marks in
// [off, off+n), as Status does it. Ranges that touch are one.
func (c *Client) Dirty(ctx context.Context, metaContext string, off, n int64) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for e, err := range c.status(ctx, metaContext, off, n, FlagDirty) {
			if err == nil && e.Flags == 0 {
				continue
			}
			if !yield(extent.Extent{Off: e.Off, Len: e.Len}, err) {
				return
			}
		}
	}
}

// Zeros streams all of [off, off+n): ranges that the server says read as zeros,
// which are marked, and those of which it does not say so. Neighbours differ.
// Allocation must be one of Options.Contexts.
func (c *Client) Zeros(ctx context.Context, off, n int64) extent.Seq {
	return func(yield func(extent.Extent, error) bool) {
		for e, err := range c.status(ctx, Allocation, off, n, FlagZero) {
			if !yield(extent.Extent{Off: e.Off, Len: e.Len, Zero: e.Flags != 0}, err) {
				return
			}
		}
	}
}
