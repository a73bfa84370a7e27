// Package systest holds the tests of the packages: a Debian is booted in a container, the deb is installed there, and what its units
// do is looked at from outside. It has no code of its own.
package systest
