// Package iszero tells whether a block of data is all zeros, at the speed of
// memory.
//
// Every byte of a disk that is backed up passes through it once, before
// anything is hashed or compressed. It leaves to others what a zero block means
// (it is recorded, never left out: I5).
//
// On amd64 with AVX2 a hand-written loop does the work; elsewhere, and in
// builds with the tag purego, 64-bit words in plain Go, against which the loop
// is tested.
//
// Concurrency: pure functions, no state.
package iszero
