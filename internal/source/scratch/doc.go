// Package scratch looks after the space that a backup of a running machine needs.
// While the backup reads a disk as it was, QEMU copies to a scratch file what the
// guest is about to overwrite; when that fails, the guest's own write fails. So the
// backup must give up before the space ends (I8): below a floor that is left to
// everybody else in the file system, there is no room.
//
// It leaves to others what is done when the room ends. All methods may be called in
// parallel.
package scratch
