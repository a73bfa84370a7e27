package exported

const (
	// connections to QEMU's NBD server for each disk, which answers one connection from
	// one thread.
	connections = 4
	// worthAsking is the length from which on QEMU is asked where a range is zero. To read
	// a shorter one costs no more than two answers do.
	worthAsking = 1 << 20
	// windowBytes bounds the range for which QEMU is asked at once where a disk is zero.
	windowBytes = 2 << 30
	// knownExtents is how many extents of a disk are remembered, 24 bytes each.
	knownExtents = 1 << 16
)
