// Package schedule says when something is due: at the times of a cron expression, each
// time once, whatever the clock and the host do.
//
// It leaves to others: to wait, to run anything, and to remember when it ran. It reads no
// clock.
//
// Times are those of the zone of the times that are passed in. In the hour that summer
// time leaves out, what falls into it is due an hour later by the clock; in
// the hour that comes twice, what has a fixed hour is due the first time only.
package schedule
