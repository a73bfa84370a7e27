package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy says that another process holds a machine's lock. The error is a
// *BusyError.
var ErrBusy = errors.New("another qbackup works on this machine")

// Holder is who holds a lock.
type Holder struct {
	PID   int       `json:"pid"`
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
}

// BusyError names the holder as far as it could be read from the lock file.
type BusyError struct {
	Path   string
	Holder Holder // zero when the holder could not be read
}

// Error says who holds the lock and since when.
func (e *BusyError) Error() string {
	if e.Holder.PID == 0 {
		return fmt.Sprintf("%v: %s is locked", ErrBusy, e.Path)
	}
	return fmt.Sprintf("%v: process %d on %s, since %s", ErrBusy, e.Holder.PID, e.Holder.Host,
		e.Holder.Since.Format(time.RFC3339))
}

// Is makes errors.Is(err, ErrBusy) true.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// Lock takes the machine's lock without waiting. The kernel gives it up when
// the process ends in whatever way, so whoever holds it knows that every
// earlier run of this machine with this state directory is dead. unlock may be
// called more than once.
func (m *Machine) Lock(now time.Time) (unlock func(), err error) {
	return LockFile(m.base+lockSuffix, now)
}

// LockFile takes a lock that is a file, made when it is not there, in the same way.
func LockFile(path string, now time.Time) (unlock func(), err error) {
	if err := makeFolder(filepath.Dir(path), folderMode); err != nil {
		return nil, fmt.Errorf("take a lock: %w (choose another directory with --state-dir or QBACKUP_STATE_DIR)", err)
	}
	// The file is never removed: a process that waits on an unlinked file and
	// one that makes a new file would both hold "the" lock.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("take a lock: %w (choose another directory with --state-dir or QBACKUP_STATE_DIR)", err)
	}
	err = flock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, &BusyError{Path: path, Holder: readHolder(f)}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := writeHolder(f, now); err != nil {
		f.Close()
		return nil, fmt.Errorf("write down who locked %s: %w", path, err)
	}
	return func() {
		// An emptied file says that nobody holds it. The lock is given up before
		// the descriptor is closed: a program that is just being started by this
		// process has a copy of it for a moment.
		_ = f.Truncate(0)
		_ = giveUp(f)
		_ = f.Close()
	}, nil
}

// flock locks the open file description: unlike POSIX record locks it is not
// lost when another descriptor of the same file is closed.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// giveUp ends the lock on the open file description, whoever has a copy of the
// descriptor. On a closed file it does nothing.
func giveUp(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.Flock(int(fd), unix.LOCK_UN) })
	return errors.Join(err, failed)
}

func writeHolder(f *os.File, now time.Time) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	raw, err := json.Marshal(Holder{PID: os.Getpid(), Host: host, Since: now.UTC()})
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(raw, 0)
	return err
}

// readHolder waits a little for a holder that has locked and not yet written.
func readHolder(f *os.File) Holder {
	for range holderRetries {
		raw, err := io.ReadAll(io.NewSectionReader(f, 0, fileBytesMax))
		var h Holder
		if err == nil && json.Unmarshal(raw, &h) == nil && h.PID > 0 {
			return h
		}
		time.Sleep(holderPause)
	}
	return Holder{}
}
