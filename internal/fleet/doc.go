// Package fleet backs up the machines of a host into one repository: it finds out which
// there are, backs several of them up at once, runs what the operator wants run before
// and after, and remembers how each ended. One machine's failure is no other's.
//
// It leaves to others: what a configuration file looks like, when a machine is due, and
// how one machine is backed up.
//
// All methods of a Fleet may be called in parallel. Two backups of one machine at once
// are refused by the machine's lock, whoever runs them.
package fleet
