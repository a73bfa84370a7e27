package iszero

import "testing"

func TestEveryByteCounts(t *testing.T) {
	for n := range 300 {
		b := make([]byte, n)
		if !IsZero(b) {
			t.Fatalf("%d zeros are not zero", n)
		}
		for i := range b {
			b[i] = 1
			if IsZero(b) {
				t.Fatalf("byte %d of %d is not seen", i, n)
			}
			b[i] = 0
		}
	}
}
