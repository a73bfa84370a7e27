// Package restore copies a disk of a point to a target: a raw file, a thin qcow2 image, a block device, or a stream.
//
// Data is read and written in parallel, in aligned ranges. What the point holds as zero stays a hole in a target that
// was made for the restore, and is written as zeros in one that existed. A file appears under its name only when all of
// it is there and synced: until then it is NAME.partial, which a failed restore removes, unless it was asked to
// keep what could be read of a damaged point.
//
// It leaves to others: finding and checking data (repo), the format of images (qcow2), which disk goes where (cmd).
//
// Concurrency: Run starts its goroutines in one group and returns when all have ended. Source.ReadAtContext
// and Target.WriteAt are called in parallel, never twice for the same range.
//
// Invariant served: every byte of the disk is in the target, or Run fails and names the ranges that are not.
package restore
