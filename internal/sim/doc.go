// Package sim simulates crashes: it records what a program writes, and gives
// back what a disk may hold when the power fails at any instant of it.
//
// It leaves the judgement of what is found there to the tests.
//
// Concurrency: a RecordingFile may be used in parallel; Crashes may not run
// while it is written to.
//
// Serves I2 and I6.
package sim
