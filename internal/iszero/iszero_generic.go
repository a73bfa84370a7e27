//go:build !amd64 || purego

package iszero

func isZero(b []byte) bool { return isZeroWords(b) }
