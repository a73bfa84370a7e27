// Package bitmapscan turns one dirty bitmap of a qcow2 image into the ascending
// stream of dirty extents of the disk.
//
// It leaves to others where the bitmap's table lies and whether the bitmap may
// be trusted (internal/qcow2, agent), and what is done with the extents. It
// reads bitmap data only, never guest data, and writes nothing.
//
// A bitmap is read front to back through one buffer, in long reads where its
// clusters are neighbours in the file. Nothing grows with the size of the disk.
//
// The one direction in which it may not be wrong is to report less than is
// dirty. So whatever is not plainly a clean bit, such as a table entry outside
// of the file, a short read or a reserved bit, is an error, and an error ends
// the stream: the extents before it are right, but not all.
//
// Concurrency: a Bitmap is not changed by its methods, and they may be called
// in parallel when its Data allows parallel reads, as *os.File does. No
// goroutine is started.
//
// Serves I2 and I3.
package bitmapscan
