// Package service is the loop of `qbackup agent`: it begins each machine's backup when it
// is due, bounds how many run at once, tells systemd how it is, takes a new configuration
// without dropping what runs, and stops in time.
//
// It leaves to others: what a backup is, what the configuration says, and what is
// remembered over restarts; see Backend.
//
// Run is called once. One goroutine decides; each backup has its own, and none outlives
// Run. The wall clock is looked at anew at every turn, at least twice a minute, so that a
// clock that is set is noticed.
package service
