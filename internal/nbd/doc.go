// Package nbd reads disks that a server exports with the Network Block Device
// protocol: their data, and what the server knows of it (allocation, QEMU's dirty
// bitmaps).
//
// A Client is one export over one or several connections. It speaks the fixed
// newstyle handshake, with TLS where it is asked for, structured replies where
// the server has them, and keeps many requests in flight on each connection. It
// never writes.
//
// It leaves to others what the data is good for, where a server listens, and
// whether it may be believed about its export. What it does check is that the
// server keeps to the protocol: every length, offset, cookie and order that it
// sends. A server that breaks the protocol ends the client; nothing is guessed,
// and nothing that a server claims makes the client hold more memory than the
// limits in layout.go.
//
// Data goes from the socket into the caller's buffer. Holes are zeros there.
// Every byte of a read is known to have come from the server exactly once before
// the read succeeds.
//
// Concurrency: a Client is safe for parallel use, and parallel reads are the way
// to use it. One goroutine per connection reads replies until the connection is
// lost or Close is called; Close waits for them. When one connection is lost, all
// of the client is: every pending and every later call gets the same error, which
// matches ErrLost.
//
// Serves I2, I3 and I5: a status that is incomplete is an error and never "not
// dirty", and only what the server vouches for is marked as zero.
package nbd
