// Package format turns the values of a repository into the bytes of its objects
// and back. docs/format/repository.md is the normative page; this package is its
// code, and its tests decode the hexdumps of that page.
//
// It leaves to others where the bytes come from and what is done with them:
// nothing here opens, sends, caches, retries or decides. The one exception to
// purity is memory, which is bounded before it is taken: every Parse function
// checks lengths and counts against the bytes at hand and against layout.go
// before it allocates, returns an error for anything else, and never panics.
//
// Two families of objects exist. Documents (descriptor, machine, intent, record,
// abort, tombstone, verdict) are three lines of text, readable with a pager.
// Packs, map objects and manifests are binary. Big-endian throughout, except for
// what belongs to zstd, which is little-endian.
//
// Encoders parse their own output before they return it, so that bytes nobody
// could read never leave the process.
//
// Concurrency: values are not to be changed while others read them. BlockHasher
// and Codec may be used from any number of goroutines; PackWriter and MapWriter
// belong to one.
//
// It serves I1 (a record names what it needs by hash), I5 (zero is written down),
// and I4 by giving every object a name that its own bytes repeat.
package format
