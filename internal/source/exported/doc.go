// Package exported is a disk of a machine that runs, as its QEMU exports it over NBD
// at one instant: what of it is dirty, where it is zero, and its bytes. Those who make
// QEMU do so, with QMP or through libvirt, share it.
//
// A Watch looks after the export from one goroutine; the first thing that it finds
// wrong is what every read gets from then on. All methods of a Disk may be called in
// parallel.
//
// Serves I5: zeros are told only where they are certain.
package exported
