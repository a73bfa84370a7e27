// Package extent is the algebra of byte ranges of a disk: ascending streams of
// half-open ranges, and the union, intersection, difference, alignment and
// splitting of such streams.
//
// It leaves to others what the bytes are and where they lie. A stream is an
// iterator, so a disk of any size and any fragmentation passes through in
// constant memory; nothing here holds a whole set unless Collect is called.
//
// A stream is ascending and non-overlapping, and the first error ends it. The
// operations check this of what they read: a range that is out of order, that
// overlaps, or that is no range of an int64 disk becomes an ErrOrder or
// ErrRange of the result. Everything given out before the error is right, but
// the set is incomplete, and a caller that sees an error must not act as if it
// had the set.
//
// The output of Union, Intersect, Subtract and Align is coalesced: two ranges
// that touch and agree on Zero are one range.
//
// Concurrency: a Seq may be ranged over as often, and from as many goroutines,
// as the streams it is made of. Leaving a loop early releases everything; no
// goroutine is left behind.
//
// Serves I2 and I5: a range that was dirty on the way in is dirty on the way
// out, and Zero is only ever dropped, never invented.
package extent
