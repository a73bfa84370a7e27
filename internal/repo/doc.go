// Package repo is the repository: how a run becomes a point, and how points are
// found and read.
//
// A run announces itself with an intent (Begin), stores packs and map nodes
// (PutPack, Sink), names them in a manifest and lists them back (Seal), and becomes
// a point with one small record in its commit slot (Publish). A point is a
// committed slot without a tombstone; OpenPoint gives its disks as parallel
// readers, every byte of which was checked against the chain record, map,
// manifest, pack index, block hash.
//
// Left to others: bytes and keys (format), the tree of a map (blockmap), transport
// and retries (store), what goes into a pack (upload), which points to build on
// and when bits are forgotten (agent), deletion.
//
// Everything here may be used from several goroutines but for what says otherwise.
// Caches are bounded in bytes. No goroutine outlives the call that began it.
//
// It serves I1 (a record is sent only when everything it refers to was listed with
// its size), I2 (Publish returns nil only after it read its own record, and then no
// tombstone), I4 (every PUT is create-only; nothing is deleted) and I7 (what cannot
// be asked is ErrUnknownOutcome, and never a verdict).
package repo
