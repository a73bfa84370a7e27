package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// nameRetry is how often a name that is taken is tried again.
const nameRetry = 100 * time.Millisecond

// NameLock is a lock that is a name on this host and no file, for what is shared by runs with different state directories:
// a QEMU, a domain. It is an abstract socket, which ends with whoever has it, in whatever way.
type NameLock struct {
	socket *os.File
}

// LockName takes a lock. One that is taken is waited for, since a run that died may still be cleaned up after; then it is a
// *BusyError about what.
func LockName(ctx context.Context, name, what string, wait time.Duration) (*NameLock, error) {
	deadline := time.Now().Add(wait)
	for {
		l, err := bindName("@qbackup/" + name)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock %s: %w", what, err)
		}
		if time.Now().After(deadline) {
			return nil, &BusyError{Path: what}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(nameRetry):
		}
	}
}

func bindName(address string) (*NameLock, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	l := &NameLock{os.NewFile(uintptr(fd), address)}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: address}); err != nil {
		l.Unlock()
		return nil, err
	}
	return l, nil
}

// File may be given to programs that are started: the lock is held until they have ended, too, even when we die before.
func (l *NameLock) File() *os.File { return l.socket }

// Unlock gives the lock up. It may be called more than once, also of none.
func (l *NameLock) Unlock() {
	if l != nil {
		_ = l.socket.Close()
	}
}
