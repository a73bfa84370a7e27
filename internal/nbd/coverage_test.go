package nbd

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestCoverageEqualsAFlagForEveryByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 40
		var c coverage
		var came [size]bool
		for range rapid.IntRange(1, 60).Draw(t, "pieces") {
			off := rapid.Int64Range(0, size-1).Draw(t, "offset")
			n := rapid.Int64Range(1, min(size-off, 4)).Draw(t, "length")
			twice := false
			for i := off; i < off+n; i++ {
				twice = twice || came[i]
			}
			if err := c.add(off, n); twice != errors.Is(err, ErrProtocol) {
				t.Fatalf("[%d,%d): twice %v, error %v, spans %v", off, off+n, twice, err, c.spans)
			}
			for i := off; i < off+n && !twice; i++ {
				came[i] = true
			}
			all := true
			for _, b := range came {
				all = all && b
			}
			if c.whole(0, size) != all {
				t.Fatalf("whole %v, spans %v", c.whole(0, size), c.spans)
			}
			for i := 1; i < len(c.spans); i++ {
				if c.spans[i-1].end >= c.spans[i].off {
					t.Fatalf("spans %v", c.spans)
				}
			}
		}
	})
}
