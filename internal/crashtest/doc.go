// Package crashtest cuts the power in the middle of whole backups, and proves that
// what is left harms nobody: QEMU opens the images, every point that is listed
// restores to what its disks held, and the next runs make right points by
// themselves.
//
// It has tests only. What is recorded and how a disk loses what was not synced is
// internal/sim's; docs/testing.md says what is cut and how often.
//
// Concurrency: a scenario works alone on its own folder; scenarios run in parallel.
//
// Proves I1, I2, I3 and I6.
package crashtest
