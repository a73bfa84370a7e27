package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// ErrDamaged marks a state file that cannot be read as one. It is reported
// through Options.Report and the file is treated as absent.
var ErrDamaged = errors.New("state file is damaged")

// Options of a State.
type Options struct {
	// Report is told about files that were damaged and are treated as absent.
	// nil drops the reports.
	Report func(error)
	// ReadOnly makes nothing: a directory that is not there holds nothing.
	ReadOnly bool
}

// State is a state directory. It holds no open files; parallel use is safe.
type State struct {
	dir    string
	report func(error)
}

// Open makes the state directory when needed, unless it is only to be read. When root
// makes it, others may pass through it, and no more: QEMU mostly is another user, and
// has to reach the folder for scratch files. What else is in it is for the owner only.
func Open(dir string, o Options) (*State, error) {
	if !o.ReadOnly {
		mode := fs.FileMode(folderMode)
		if os.Geteuid() == 0 {
			mode = passedMode
		}
		if err := errors.Join(makeFolder(dir, mode), makeFolder(filepath.Join(dir, repositoriesFolder), folderMode)); err != nil {
			return nil, fmt.Errorf("open state directory: %w (choose another with --state-dir or QBACKUP_STATE_DIR)", err)
		}
	}
	report := o.Report
	if report == nil {
		report = func(error) {}
	}
	return &State{dir: dir, report: report}, nil
}

// Dir is the directory given to Open.
func (s *State) Dir() string { return s.dir }

// Repository gives the state kept about one repository, by its random id.
func (s *State) Repository(id [16]byte) *Repository {
	return &Repository{state: s, dir: filepath.Join(s.dir, repositoriesFolder, fmt.Sprintf("%x", id))}
}

// Repository is the part of the state that belongs to one repository.
type Repository struct {
	state *State
	dir   string
}

// Probe is what the provider of a repository was found to do.
type Probe struct {
	Time time.Time `json:"time"`
	// CreateOnly says that a conditional PUT to an existing key was refused.
	// While it is false, no ABORT may be written: it could replace a record.
	CreateOnly bool `json:"create_only"`
	// Detail is the prober's own account, for people and metrics.
	Detail json.RawMessage `json:"detail,omitempty"`
}

// Probe returns the last verdict, and false when there is none.
func (r *Repository) Probe() (Probe, bool) {
	var p Probe
	found := r.state.read(filepath.Join(r.dir, probeFile), &p)
	return p, found
}

// SaveProbe replaces the verdict.
func (r *Repository) SaveProbe(p Probe) error {
	if err := r.state.write(filepath.Join(r.dir, probeFile), p); err != nil {
		return fmt.Errorf("save probe verdict: %w", err)
	}
	return nil
}

// Machine gives the state kept about one machine.
func (r *Repository) Machine(name ident.MachineName) *Machine {
	return &Machine{
		state: r.state,
		name:  name,
		base:  filepath.Join(r.dir, machinesFolder, string(name)),
	}
}

// envelope is what every file holds: a version, and the value as it is.
type envelope struct {
	Version int             `json:"version"`
	Value   json.RawMessage `json:"value"`
}

// read fills v from a file. Anything but a sound file gives false; all but a
// missing file is reported.
func (s *State) read(path string, v any) bool {
	raw, err := readBounded(path)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		s.report(fmt.Errorf("read %s: %w", path, err))
		return false
	}
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		s.report(fmt.Errorf("%s: %w, it counts as absent: %w", path, ErrDamaged, err))
		return false
	}
	if e.Version != fileVersion {
		s.report(fmt.Errorf("%s: %w, it counts as absent: its version is %d, not %d", path, ErrDamaged, e.Version, fileVersion))
		return false
	}
	if err := json.Unmarshal(e.Value, v); err != nil {
		s.report(fmt.Errorf("%s: %w, it counts as absent: %w", path, ErrDamaged, err))
		return false
	}
	return true
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, fileBytesMax))
}

// write replaces a file so that a crash leaves the old one or the new one.
func (s *State) write(path string, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(envelope{Version: fileVersion, Value: value})
	if err != nil {
		return err
	}
	folder := filepath.Dir(path)
	if err := makeFolder(folder, folderMode); err != nil {
		return err
	}
	// CreateTemp gives mode 0600.
	f, err := os.CreateTemp(folder, ".new-*")
	if err != nil {
		return err
	}
	if err := fill(f, append(raw, '\n')); err != nil {
		os.Remove(f.Name())
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncFolder(folder)
}

func fill(f *os.File, b []byte) error {
	_, err := f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
