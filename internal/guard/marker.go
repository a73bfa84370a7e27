package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	markerSuffix   = ".held"
	markerNew      = ".new-" // begins the name of a marker that is being written
	markerVersion  = 1
	markerBytesMax = 1 << 20
	// newAge is how old an unfinished marker must be to be rubbish.
	newAge = time.Minute
)

// note is what a marker holds.
type note struct {
	Version int       `json:"version"`
	Boot    string    `json:"boot"` // of the host, see bootID
	PID     int       `json:"pid"`  // of the guard, for people
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Since   time.Time `json:"since"`
	Action  Action    `json:"action"`
	// Cleanup is set instead of Action in the marker of what is to be cleaned up.
	Cleanup json.RawMessage `json:"cleanup,omitempty"`
}

// marker is a file that is locked as long as it is open.
type marker struct {
	path string
	f    *os.File
}

// writeMarker makes a marker. Whoever sees it under its name sees it complete and
// locked, also after a power failure, though there is nothing to undo then.
func writeMarker(folder string, n note) (*marker, error) {
	n.Version, n.Boot, n.PID = markerVersion, bootID(), os.Getpid()
	text, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(folder, markerNew+n.ID+"-*")
	if err != nil {
		return nil, err
	}
	m := &marker{path: filepath.Join(folder, n.ID+"-"+n.Name+markerSuffix), f: f}
	if err = lock(f); err == nil {
		_, err = f.Write(append(text, '\n'))
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), m.path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()), f.Close())
	}
	return m, nil
}

// remove ends a marker whose thing is undone.
func (m *marker) remove() error {
	err := os.Remove(m.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, m.leave())
}

// leave gives up a marker whose thing is not undone, for Recover. The lock is given up
// by hand: a program that is just being started has a copy of the descriptor for a moment.
func (m *marker) leave() error {
	return errors.Join(unlock(m.f), m.f.Close())
}

// errLives: the guard of a marker lives.
var errLives = errors.New("its guard lives")

// takeMarker opens and locks a marker. The error is errLives, or os.ErrNotExist when it
// has just been removed.
func takeMarker(path string) (*marker, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLives
		}
		return nil, err
	}
	mine, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Lstat(path); err == nil && !os.SameFile(mine, there) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &marker{path, f}, nil
}

func (m *marker) read() (note, error) {
	text, err := io.ReadAll(io.NewSectionReader(m.f, 0, markerBytesMax))
	if err != nil {
		return note{}, err
	}
	return parseNote(text)
}

func parseNote(text []byte) (note, error) {
	var n note
	if err := json.Unmarshal(text, &n); err != nil {
		return note{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if n.Version != markerVersion {
		return note{}, fmt.Errorf("%w: its version is %d", ErrDamaged, n.Version)
	}
	if n.Cleanup != nil {
		return n, nil
	}
	if err := n.Action.check(); err != nil {
		return note{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, nil
}

// bootID is the kernel's random id of the running boot, "" where there is none.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// lock locks the open file without waiting. It is the kernel's: it ends with the
// process, and with it only.
func lock(f *os.File) error { return flock(f, unix.LOCK_EX|unix.LOCK_NB) }

func unlock(f *os.File) error { return flock(f, unix.LOCK_UN) }

func flock(f *os.File, how int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			if failed = unix.Flock(int(fd), how); !errors.Is(failed, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, failed)
}
