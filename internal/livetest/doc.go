// Package livetest backs up machines that run, with the real program and real QEMUs,
// while a guest writes all the time, and compares every point with what the guest is
// known to have written. There is no code but tests.
//
// A guest keeps an ordered log of its writes. A point is right when there is one
// instant at which all of its disks were as they are in it: of every writer a prefix of
// its log, of the write at the border any part, and no write that began after the instant
// or lacks though it had ended before.
package livetest
