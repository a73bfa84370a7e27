package state

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/ident"
)

// Results are what this host knows of the backups into one place. The place is named
// as it was configured, so that there is a result also when the store cannot be asked.
type Results struct {
	state *State
	dir   string
}

// Results gives the results for a place.
func (s *State) Results(place string) *Results {
	sum := sha256.Sum256([]byte(place))
	return &Results{s, filepath.Join(s.dir, resultsFolder, hex.EncodeToString(sum[:8]))}
}

// Machine returns what is known of a machine; of one that is not known, its name.
func (r *Results) Machine(name ident.MachineName) Result {
	var v Result
	if !r.state.read(r.path(name), &v) || v.Machine != name {
		return Result{Machine: name}
	}
	return v
}

// Machines returns what is known of all machines, by name.
func (r *Results) Machines() ([]Result, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, machinesFolder))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list results: %w", err)
	}
	var all []Result
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), journalSuffix)
		machine, err := ident.ParseMachineName(name)
		if !ok || err != nil {
			continue
		}
		var v Result
		if r.state.read(r.path(machine), &v) && v.Machine == machine {
			all = append(all, v)
		}
	}
	return all, nil
}

// Update changes what is known of a machine. Others wait meanwhile.
func (r *Results) Update(name ident.MachineName, change func(*Result)) error {
	err := r.locked(func() error {
		v := r.Machine(name)
		change(&v)
		return r.state.write(r.path(name), v)
	})
	if err != nil {
		return fmt.Errorf("keep the result of machine %s: %w", name, err)
	}
	return nil
}

// Overall returns what is known of the repository as a whole.
func (r *Results) Overall() Overall {
	var v Overall
	r.state.read(filepath.Join(r.dir, overallFile), &v)
	return v
}

// UpdateOverall changes what is known of the repository. Others wait meanwhile.
func (r *Results) UpdateOverall(change func(*Overall)) error {
	err := r.locked(func() error {
		v := r.Overall()
		change(&v)
		return r.state.write(filepath.Join(r.dir, overallFile), v)
	})
	if err != nil {
		return fmt.Errorf("keep the results: %w", err)
	}
	return nil
}

func (r *Results) path(name ident.MachineName) string {
	return filepath.Join(r.dir, machinesFolder, string(name)+journalSuffix)
}

// locked keeps other programs from changing results between a read and a write. It is
// held for moments.
func (r *Results) locked(work func() error) error {
	if err := makeFolder(r.dir, folderMode); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(r.dir, resultsLock), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return errors.Join(work(), giveUp(f))
}
