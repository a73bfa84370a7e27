// Package live is a machine that runs: its QEMU is asked over QMP to hold the point
// in time, and the disks are read over NBD, while the guest goes on.
//
// The point in time is one transaction over all disks. For each it starts a new
// bitmap, which records from then on and continues this run; lets QEMU copy to a
// scratch image what the guest is about to overwrite; and copies the bits of our
// bitmaps to a frozen one beside it. The scratch image, with the disk below it, is
// the disk as it was, and is exported with the frozen bits. Bitmaps that were there
// go on recording until the point stands, so giving up means to remove the new one,
// and a death at any moment leaves bitmaps of which one still has every change.
//
// The order inside the transaction is what makes it right with I/O threads, in which
// a guest writes between two actions: first the new bitmap, then the point in time,
// then the copy of the bits. A bit too many is harmless.
//
// Files of a machine that runs are never read for bitmaps or data: what QEMU has in
// memory is newer. Nothing is stored outside of QEMU but the scratch files, which
// have no name from the moment on that QEMU has opened them.
//
// Everything of ours in a QEMU has a name that begins with qb1-; what an earlier
// death left is found by it and taken down before the next point in time. An abstract
// socket named after the process keeps two runs from doing that to each other.
//
// One goroutine for each cut watches the scratch space, and gives the backup up before
// it ends, because QEMU would fail the guest's writes then (I8). It serves I2, I3 and I8. A Machine and its Cut are used from one goroutine; the disks of a cut from any.
package live
