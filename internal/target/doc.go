// Package target turns what a command line or a configuration calls a machine into its
// name and its source: images that nobody has open, a QEMU with its monitor, or a domain
// of libvirt. It starts the guard that undoes what would hurt the machine if the backup
// died, and undoes what dead guards have left.
//
// It leaves to others: which flags and keys there are, and what is done with a machine.
//
// A Host may be used by several goroutines. Serves I8.
package target
