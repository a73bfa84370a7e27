// Package source says what a machine is to a backup: something that can be
// inspected, frozen at one instant, read, and told to forget its dirty bits once
// a restore point holds them.
//
// It has types only. The packages below it are kinds of machines; which base a
// disk continues, and what is uploaded, is decided elsewhere.
//
// The order of a run is Inspect, Freeze, reading, Confirm, publishing, Commit;
// Abort takes the place of everything after Freeze when something fails.
//
// Concurrency: a Machine is used by one run at a time. The disks of a Cut may be
// read in parallel; Confirm, Commit and Abort are called one after the other,
// when no read is under way.
//
// Serves I2 (bits are forgotten by Commit alone), I3 (Evidence is what a bitmap's
// claim is checked against), I5 (Extents keeps zero ranges) and I7 (nothing here
// decides on its own what an absent answer means).
package source
