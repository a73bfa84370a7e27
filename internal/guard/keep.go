package guard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepPair makes the two ends of a socket, of which the guard gets the second and never
// reads from it: what lies in its queue is open as long as that end is.
func keepPair() (*net.UnixConn, *os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, kept := os.NewFile(uintptr(ends[0]), "keep"), os.NewFile(uintptr(ends[1]), "kept")
	c, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, nil, errors.Join(err, kept.Close())
	}
	return c.(*net.UnixConn), kept, nil
}

// keepTime is long enough unless the queue is full, which holds some hundred.
const keepTime = time.Second

// Keep lets the guard have a connection, too, until it ends: whoever is at the other
// side does not see the end of this process before the guard has cleaned up. Some
// versions of QEMU die when a client of their NBD server hangs up by itself.
func (g *Guard) Keep(c net.Conn) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("keep a connection: %T has no descriptor", c)
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return fmt.Errorf("keep a connection: %w", err)
	}
	if err := g.keep.SetWriteDeadline(time.Now().Add(keepTime)); err != nil {
		return fmt.Errorf("keep a connection: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		_, _, failed = g.keep.WriteMsgUnix([]byte{0}, unix.UnixRights(int(fd)), nil)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("keep a connection: %w", err)
	}
	return nil
}
