package guard

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/nbd"
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

// keptFD is where the guard has its end.
const keptFD = 3

// settleTime is how long a server may take to answer, or to hang up.
const settleTime = 2 * time.Second

// drain takes the connections that are kept, and reads what comes over them, so that
// whoever is to be made to close them can say all that it had begun to say: QEMU waits
// for a client that does not read, and for one in its handshake. They stay open until the
// process ends.
func drain() (kept []*os.File) {
	queue, err := net.FileConn(os.NewFile(keptFD, "kept"))
	if err != nil {
		return nil
	}
	u, ok := queue.(*net.UnixConn)
	if !ok {
		return nil
	}
	_ = u.SetReadDeadline(time.Now().Add(keepTime))
	var settling sync.WaitGroup
	defer settling.Wait()
	for oob := make([]byte, unix.CmsgSpace(4)); ; {
		_, n, _, _, err := u.ReadMsgUnix(make([]byte, 1), oob)
		if err != nil || n == 0 {
			return kept // its parent is dead, or has no more
		}
		for _, fd := range rights(oob[:n]) {
			f := os.NewFile(uintptr(fd), "connection")
			kept = append(kept, f)
			if c, err := net.FileConn(f); err == nil {
				settling.Add(1)
				go func() {
					_ = nbd.Settle(c, settleTime) // a server that does not answer may later
					settling.Done()
					_ = c.SetDeadline(time.Time{})
					_, _ = io.Copy(io.Discard, c)
				}()
			}
		}
	}
}

func rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if some, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, some...)
		}
	}
	return fds
}
