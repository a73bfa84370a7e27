// Package iszero tells whether bytes are all zero, at the speed of memory. Every byte that is read from a disk passes
// through it. It leaves to others what zeros mean. Its one function is pure.
package iszero

import "encoding/binary"

// IsZero tells whether every byte of b is zero; true when there are none.
func IsZero(b []byte) bool {
	for len(b) >= 64 {
		w := binary.LittleEndian.Uint64(b) | binary.LittleEndian.Uint64(b[8:]) |
			binary.LittleEndian.Uint64(b[16:]) | binary.LittleEndian.Uint64(b[24:]) |
			binary.LittleEndian.Uint64(b[32:]) | binary.LittleEndian.Uint64(b[40:]) |
			binary.LittleEndian.Uint64(b[48:]) | binary.LittleEndian.Uint64(b[56:])
		if w != 0 {
			return false
		}
		b = b[64:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
