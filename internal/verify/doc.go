// Package verify reads a repository and says what in it is damaged, and which bytes of which disks of which points that
// concerns.
//
//	list everything -> parse every document -> manifests of points -> sizes -> walk every map, with the pack indexes
//	-> map objects whole -> with Data: packs whole, every frame decoded, every block hashed
//	-> only when damage was found: walk the maps that it may concern once more, and collect the ranges
//
// Every object that a point needs is read from the store, never from a local cache: what is verified is what a restore on
// another host would find. A map node is looked at once, however many points share it. What no point needs (runs that died
// or are under way, foreign objects) is never damage and not read, but for documents, which are small.
//
// It leaves to others: bytes and what they must be (repo/format), fetching and checking of single nodes (repo), transport
// and retries (store), what is done about damage (the next backup stores condemned blocks again, see Options.Record).
//
// Concurrency: Run starts goroutines and returns when all of them have ended. Memory: packs in flight, indexes, nodes and
// ranges are bounded by named numbers in layout.go; besides these, 64 bytes for each pack of one machine and 16 bytes for
// each object of the repository.
//
// It serves I1 (a record refers only to what is there and right) and writes nothing but verdicts, create-only (I4).
package verify
