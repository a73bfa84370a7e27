// Package agent makes restore points: inspect, choose bases, freeze, upload,
// sample, confirm, publish, commit.
//
// It owns the order of these steps and every decision between them: which point
// a disk's increment builds on, when a bitmap may not be believed, which earlier
// run is dead, and what to say to people. It leaves protocols and formats to the
// rooms below: the image to source, the pipeline to upload, objects to repo, and
// what a host remembers to state.
//
// Backup may be called for different machines in parallel; two calls for one
// machine and repository exclude each other through the state directory's lock.
// No goroutine outlives a call.
//
// It serves I2 (bits are forgotten only after the record was read back), I3
// (ChooseBase), I5 (through the maps it asks for) and I7 (what cannot be asked
// decides nothing: bits stay).
package agent
