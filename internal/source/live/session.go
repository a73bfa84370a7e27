package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
)

// session is one connection to a QEMU.
type session struct {
	path     string
	monitor  *qmp.Monitor
	features features
	held     *state.NameLock // nil: not locked
	ends     ends
}

// qemu is what is known of the process behind a monitor.
type qemu struct {
	pid      int
	version  qmp.Version
	features features
}

// open connects to a monitor, and learns what its QEMU can do, unless that is known.
func open(ctx context.Context, path string, known *qemu) (*session, error) {
	monitor, err := qmp.Dial(ctx, path, qmp.Options{})
	if err != nil {
		return nil, monitorError(ctx, path, err)
	}
	s := &session{path: path, monitor: monitor}
	s.ends.session = s
	now := qemu{pid: monitor.PeerPID(), version: monitor.Version(), features: known.features}
	if now != *known || now.pid == 0 {
		if now.features, err = learnFeatures(ctx, monitor); err != nil {
			s.close()
			return nil, monitorError(ctx, path, err)
		}
		*known = now
	}
	s.features = now.features
	return s, nil
}

// monitorError says why QEMU cannot be asked, and what to do.
func monitorError(ctx context.Context, path string, err error) error {
	if stop := ctx.Err(); stop != nil {
		return stop
	}
	hint := ""
	switch {
	case errors.Is(err, source.ErrUnusable):
		return err
	case errors.Is(err, qmp.ErrNobody):
		hint = "a machine that is off is backed up from its images: qbackup backup IMAGE..."
	}
	return &source.UsableError{Path: path, Err: fmt.Errorf("%w: %w", source.ErrMonitor, err), Hint: hint}
}

// explain puts the end of a QEMU before what it made fail.
func (s *session) explain(err error) error {
	if errors.Is(err, source.ErrUnusable) || errors.Is(err, context.Canceled) {
		return err
	}
	// The end of its other sockets may be seen first.
	select {
	case <-s.monitor.Lost():
		return s.gone(err)
	case <-time.After(endTime):
		return err
	}
}

// gone is the error for a QEMU that ended, or let go of the disks, while it was
// needed.
func (s *session) gone(err error) error {
	return &source.UsableError{Path: s.path, Err: fmt.Errorf("%w while it was backed up: %w", source.ErrGone, err),
		Hint: "nothing was published; back it up again, from its images if it is off now"}
}

// close ends the connection and gives the machine up.
func (s *session) close() {
	_ = s.monitor.Close()
	s.held.Unlock()
}

// lock makes sure that what an earlier run left in this QEMU is nobody's.
func (s *session) lock(ctx context.Context, wait time.Duration) (err error) {
	pid := s.monitor.PeerPID()
	s.held, err = state.LockName(ctx, fmt.Sprintf("qemu/%d", pid), fmt.Sprintf("QEMU process %d", pid), wait)
	return err
}

// do runs one command. result may be nil.
func (s *session) do(ctx context.Context, command string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	return s.monitor.Execute(ctx, command, arguments, result)
}
