package live

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/source"
)

// ends are our ends of the connections to QEMU's NBD server, of which QEMU itself is
// given a descriptor each. A QEMU whose disk is in an I/O thread may abort when a client
// of it goes away (7.2.14 and later, other stable versions with the fix of
// CVE-2024-7409), and with it the guest. With a descriptor of its own it never sees a client
// go, however we end: exports are removed first, and then the descriptors.
type ends struct {
	session *session
	mu      sync.Mutex
	count   int
}

// keep passes one end to QEMU, before anything is sent over it.
func (e *ends) keep(ctx context.Context, conn net.Conn) error {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("not a unix socket")
	}
	f, err := u.File()
	if err != nil {
		return err
	}
	defer f.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	if err := e.session.monitor.PassFile(ctx, numbered(endName, e.count), f); err != nil {
		return fmt.Errorf("give QEMU an end of the connection: %w", err)
	}
	e.count++
	return nil
}

// closeEnds makes QEMU close the ends that it was given, by whatever run: the last
// first, so that what is left after a death begins with the first. The exports must be
// gone.
func (s *session) closeEnds(ctx context.Context) error {
	if !s.features.passFile {
		return nil
	}
	for count := s.ends.count; count > 0; count-- {
		_ = s.closeEnd(ctx, count-1) // the next run closes what is left
	}
	s.ends.count = 0
	for n := 0; ; n++ {
		err := s.closeEnd(ctx, n)
		var refused *qmp.Error
		if errors.As(err, &refused) {
			return nil // there are no more
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) closeEnd(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	return s.monitor.CloseFile(ctx, numbered(endName, n))
}

// checkEnds refuses a QEMU that would be in danger and cannot be given descriptors.
func (s *session) checkEnds(ctx context.Context) error {
	if s.features.passFile {
		return nil
	}
	var objects []struct{ Type string }
	err := s.do(ctx, "qom-list", args{"path": "/objects"}, &objects)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return nil // the folder comes with the first object
	}
	for _, o := range objects {
		if o.Type == "child<iothread>" {
			return &source.UsableError{Path: s.path, Err: errors.New("the disks are in I/O threads of a QEMU that cannot take descriptors, and that might abort when the backup disconnects"),
				Hint: "start it without I/O threads, or stop it and back up its images"}
		}
	}
	return err
}
