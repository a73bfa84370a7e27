package iszero

import "encoding/binary"

// IsZero tells whether every byte of b is zero. An empty b is.
func IsZero(b []byte) bool { return isZero(b) }

const (
	wordBytes = 8
	turnBytes = 8 * wordBytes
)

// isZeroWords is IsZero in plain Go, on every machine.
func isZeroWords(b []byte) bool {
	le := binary.LittleEndian
	for len(b) >= turnBytes {
		turn := b[:turnBytes:turnBytes]
		if le.Uint64(turn[0:])|le.Uint64(turn[8:])|le.Uint64(turn[16:])|le.Uint64(turn[24:])|
			le.Uint64(turn[32:])|le.Uint64(turn[40:])|le.Uint64(turn[48:])|le.Uint64(turn[56:]) != 0 {
			return false
		}
		b = b[turnBytes:]
	}
	for len(b) >= wordBytes {
		if le.Uint64(b) != 0 {
			return false
		}
		b = b[wordBytes:]
	}
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
