// Package upload turns the extents of disks into packs in a store and spans in block maps: a bounded pipeline that
// reads, tests for zero, compares with what is stored, compresses, verifies, packs and puts.
//
//	extents -> pieces -> workers (read, zero, hash, compare, compress, decode and compare) -> sequencer -> packs -> putters
//	           1 MiB      in parallel                                                          in order     sealed   in parallel
//
// A piece is one aligned window of a disk, 1 MiB, with the blocks in it that are to be read, or a stretch of blocks
// that are known to be zero. Workers take pieces in any order; the sequencer takes their results in the order of the
// disk. So packs hold neighbours next to each other, map spans arrive ascending, the same input gives the same packs,
// and memory does not depend on the size of the disk.
//
// It leaves to others: which extents are to be read (the source), what a base is and whether it may be used (the agent),
// the layout of packs (repo/format), retries and transport (store), and above all the commit: Run sees a Disk that it
// can only read, so it cannot forget a bit.
//
// Concurrency: Run starts its goroutines in one group and returns when all of them have ended. Disk.ReadAt,
// Base.Spans and Hashes.BlockHash are called in parallel; Map.Set from one goroutine, ascending; Target.PutPack in
// parallel with different packs. A Stats may be read at any time.
//
// Invariants served: I1 (a frame counts as written only after it was decoded and compared with what was read),
// I5 (a dirty block that reads as zero is set to zero in the map).
package upload
