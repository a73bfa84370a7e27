package virt

import "time"

const (
	// defaultURI is where libvirt's system daemon listens.
	defaultURI = "qemu:///system"
	// programName is libvirt's own client.
	programName = "virsh"

	// commandTime bounds one command. libvirt waits 30 s for a domain on which
	// another command works, and a backup job that begins creates files.
	commandTime = 2 * time.Minute
	// teardownTime bounds everything that a cut does at its end.
	teardownTime = 3 * time.Minute
	// replyBytes bounds what a command may print. The list of QEMU's nodes has about
	// 1 KiB for each file of each disk.
	replyBytes = 64 << 20

	// watchInterval is how often the scratch space is looked at.
	watchInterval = 50 * time.Millisecond
	pollPause     = 10 * time.Millisecond
	pollPauseMax  = 200 * time.Millisecond

	// connectionsPerDisk to QEMU's NBD server, which answers one connection from one
	// thread.
	connectionsPerDisk = 4
	// bitmapName is what the bits of a disk are called beside its export.
	bitmapName = "dirty"

	// socketPathMax is the longest path of a Unix socket.
	socketPathMax = 107
)

const (
	// windowBytes and windowExtents bound the ranges for which QEMU is asked at once
	// where a disk is zero.
	windowBytes   = 2 << 30
	windowExtents = 4096
)
