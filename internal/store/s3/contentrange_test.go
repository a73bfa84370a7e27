package s3

import (
	"fmt"
	"testing"
)

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 3-6/10", "bytes */10", "bytes 5-3/10", "bytes 0-10/10", "bytes -1-2/3", "0-9/10", "", "bytes 0-9/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, total, ok := parseContentRange(s)
		if !ok {
			return
		}
		if first < 0 || first >= total {
			t.Errorf("%q: first %d of %d", s, first, total)
		}
	})
}

func TestContentRanges(t *testing.T) {
	for first := range int64(4) {
		for last := range int64(4) {
			for total := range int64(4) {
				got, size, ok := parseContentRange(fmt.Sprintf("bytes %d-%d/%d", first, last, total))
				if want := first <= last && last < total; ok != want || ok && (got != first || size != total) {
					t.Errorf("bytes %d-%d/%d: %d %d %v", first, last, total, got, size, ok)
				}
			}
		}
	}
}
