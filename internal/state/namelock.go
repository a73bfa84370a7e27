package state

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// nameRetry is how often a name that is taken is tried again.
const nameRetry = 100 * time.Millisecond

// LockName takes a lock that is a name on this host and no file, for what is shared by
// runs with different state directories: a QEMU, a domain. It is an abstract socket,
// which ends with whoever has it, in whatever way. One that is taken is waited for,
// since a run that died may still be cleaned up after; then it is a *BusyError about
// what. unlock may be called more than once.
func LockName(ctx context.Context, name, what string, wait time.Duration) (unlock func(), err error) {
	deadline := time.Now().Add(wait)
	for {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@qbackup/" + name})
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
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
