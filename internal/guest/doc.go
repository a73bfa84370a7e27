// Package guest plays a virtual machine with one disk: it writes, zeroes and
// discards in a qcow2 image as QEMU does, and records each of them in the
// image's bitmaps. The demo and the tests use it where QEMU is not installed, or
// would be too slow.
//
// It takes images of version 3 with 16-bit refcounts, standard L2 entries and
// any cluster size, without backing file, data file, snapshots and compressed
// clusters. Open marks the bitmaps as in use, and Close saves them into new
// clusters, in QEMU's order; a Disk that is never closed leaves them in use, as
// a machine that was killed. A stale bitmaps extension is left as it is, where
// QEMU would take it out of the header.
//
// It leaves to others: locks, and everything about backups. It is an
// implementation of its own, so that it can disagree with package qcow2.
//
// Concurrency: a Disk may be used in parallel; calls take turns.
//
// Serves I2, I5 and I6, as what they are tested against.
package guest
