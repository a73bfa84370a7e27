// Package blockmap is the map of a disk: a tree that says of every block where its bytes lie, or that they are zero.
//
// A leaf covers 1,024 blocks as run-length spans, an inner node 1,024 children. A child that is absent is all zero, so
// sparse disks have small maps. Nodes are immutable and named by place and hash: a new map shares with the map
// it was made from every node in whose range nothing changed, and is complete by itself all the same.
//
//	level 2   64 TiB  [ child | child |  -  | ... ]         with blocks of 64 KiB
//	level 1   64 GiB  [ child |   -   | ... ]
//	level 0   64 MiB  [ span: blocks 0+40 at run/pack#ordinal | span: 60+4 zero | ... ]
//
// It leaves to others: where nodes are kept, fetched and checked (repo), their bytes (repo/format), what the blocks
// hold. It does no I/O of its own.
//
// Concurrency: a Reader may be used in parallel; a Builder belongs to one goroutine.
package blockmap
