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
	// endPause comes before another attempt to end a job.
	endPause = time.Second
	// replyBytes bounds what a command may print. The list of QEMU's nodes has about
	// 1 KiB for each file of each disk.
	replyBytes = 64 << 20

	// lookPause comes before another look at a domain that was seen changing its state.
	lookPause = 200 * time.Millisecond

	// bitmapName is what the bits of a disk are called beside its export.
	bitmapName = "dirty"

	// socketPathMax is the longest path of a Unix socket.
	socketPathMax = 107
)
