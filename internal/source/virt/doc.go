// Package virt is a machine that libvirt manages. While libvirt runs it, the disks
// are read through a backup job of libvirt in pull mode; while it is off, they are
// read in their files by package offline. All is asked of libvirt through the
// program virsh, and nothing is done behind libvirt's back: QEMU's monitor is only
// asked which bitmaps there are.
//
// A run makes a checkpoint of the family's name for itself, in the same step as the
// point in time. The bitmaps of libvirt's older checkpoints go on recording, so one
// of them alone names every change since it was made, and a run that gives up only
// has to take its own away. What libvirt believes of checkpoints is derived anew by
// every run from the bitmaps that the images hold: a machine that was reset in its
// files while it was off goes on incrementally after its start. Checkpoints of
// others are not touched.
//
// libvirt 9 copies the bits before its point in time. Where a disk has an I/O thread,
// in which the guest writes meanwhile, the machine is suspended for that step.
//
// It leaves to others which bitmap may be believed (agent), the protocol of the
// reads (nbd), what a file of a disk looks like (facts), how much room scratch files
// may take (scratch), and machines that are off (offline).
//
// Concurrency: a Machine serves one run at a time. The disks of a cut may be read in
// parallel. A cut of a running machine has one goroutine, which ends in Commit, Abort
// or Leave, whichever comes first, and one for each NBD connection.
//
// Serves I2 (checkpoints are deleted by Commit alone), I3 (bitmaps are what QEMU says
// of its images, not what libvirt remembers) and I8 (the machine is suspended and
// frozen only within a budget, and the backup ends before the scratch space does).
package virt
