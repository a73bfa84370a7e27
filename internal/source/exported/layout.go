package exported

const (
	// connections to QEMU's NBD server for each disk, which answers one connection from
	// one thread.
	connections = 4
	// windowBytes and windowExtents bound the ranges for which QEMU is asked at once
	// where a disk is zero.
	windowBytes   = 2 << 30
	windowExtents = 4096
	// knownExtents is how many extents of a disk are remembered, 24 bytes each.
	knownExtents = 1 << 16
)
