// Package offline is a machine that is switched off: its images are files or
// block devices that no QEMU has open.
//
// It locks images as QEMU does, opens exactly the files that it may, says what
// the images look like, streams what is dirty, and has the bits forgotten by
// package qcow2. It leaves to others which bitmap may be believed (agent), what
// the bytes of an image mean and every write into one (qcow2), and the data.
//
// While an image is read, a machine may start: it is not kept from it unless
// Options.Hold is set. The run then ends with source.ErrVMStarted, by three
// means that cover each other: the locks of the writer are looked for every
// 100 ms and at the end; sizes, times, headers, bitmap directories and our bitmap
// tables must be at the end what they were at the start; and the reset needs
// locks that no writer lets us have.
//
// Page cache: on block devices and on file systems that several hosts share, what
// this host has cached may be older than what another host wrote. There, pages
// are dropped when the locks are taken, before anything is read, and again before
// the final comparison. Reading with O_DIRECT throughout was rejected: pages that
// are read under the locks are as good as the device, and unaligned structures
// would need a copying layer below every read.
//
// Concurrency: a Machine serves one run at a time. The disks of a cut may be read
// in parallel. A cut has one goroutine, which ends in Confirm, Commit or Abort,
// whichever comes first.
//
// Serves I2 (Commit is the only way to forget), I3 (bits of images that differ
// from what was inspected are not used), I5 (zero ranges are kept), I6 (writing
// only under QEMU's own locks) and I8 (the machine goes first).
package offline
