// Package sim simulates crashes: it records what a program writes, and gives
// back what disks may hold when the power fails at any instant of it.
//
// A RecordingFile is one image in memory, of which Crashes enumerates what a
// single edit can leave, byte for byte. A Log is the effects of a whole program on
// several devices (images, the folder of a store, a folder that is only watched) in
// one order; each device is a disk of its own, which may lose what was not synced
// while the others keep it.
//
// It leaves the judgement of what is found there to the tests.
//
// Concurrency: a RecordingFile and the files and folders of a Log may be used in
// parallel; Crashes and PowerCuts may not run while they are written to.
//
// Serves I1, I2 and I6.
package sim
