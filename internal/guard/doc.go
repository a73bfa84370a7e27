// Package guard makes sure that something which hurts while it lasts is undone, also
// when the program that asked for it dies: file systems frozen in a guest, a suspended
// machine, what a backup has set up in QEMU.
//
// The program starts itself a second time as a guard (Start), which runs Serve in a
// session of its own, so that what is typed at the terminal does not reach it. The guard
// does and undoes things for its parent:
//
//	parent                  guard
//	Start(spec)             waits
//	Hold("freeze", 5s)      writes the marker, freezes, says so; the budget runs
//	Release("freeze")       thaws, removes the marker, says how long it was frozen
//	Done()                  ends
//
// What is held is undone at once when the parent's end of the pipe closes (SIGKILL
// closes it, too), when the budget is over, and when the guard gets SIGTERM, SIGINT or
// SIGHUP. It is tried again and again for Spec.Persist. When the parent ends without
// Done, Hooks.Cleanup runs after that, with what the parent left for it in the spec. A
// guard that got a signal holds nothing any more, and stays until its parent ends.
//
// The parent learns at Release who undid the thing (Released.By). Only what was undone
// for Release itself was in force all the time.
//
// Nobody guards the guard but its parent, which undoes things itself when the guard
// dies. For the death of both there is the marker: a file that says what is to be
// undone or cleaned up, there from before the thing is done until it is undone, locked by the
// guard that lives. Recover undoes what the markers without a guard say. A marker from before
// the last restart of the host is worth nothing: the machines have ended with the host.
//
// It leaves to others what is done (qmp.Agent and the programs in the spec), which
// program is started, and what is to be cleaned up.
//
// Concurrency: the methods of a Guard may be called from any number of goroutines. A
// Guard has one goroutine, which ends with its process. Serve returns when all of its
// goroutines have ended.
//
// Serves I8 (nothing hurts the guest for longer than the budget) and I2 (a crash
// anywhere leaves nothing that has to be undone by hand).
package guard
