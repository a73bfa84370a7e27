package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// recoverTry is how long one thing is tried.
const recoverTry = 55 * time.Second

// Recovered is a thing that a dead guard had left in force.
type Recovered struct {
	ID    string // of the spec
	Name  string // of the action
	Since time.Time
}

// Recover undoes what dead guards have left, by the markers in a folder, and removes
// the markers. One whose guard lives is left to it. Each thing is tried once, for less
// than a minute; one that cannot be undone keeps its marker, and is an ErrNotUndone. A
// folder that is not there holds nothing. cleanup does what Hooks.Cleanup does.
func Recover(ctx context.Context, folder string, cleanup func(context.Context, json.RawMessage) error) ([]Recovered, error) {
	paths, err := markersIn(folder, "")
	if err != nil {
		return nil, fmt.Errorf("look for what dead guards have left: %w", err)
	}
	var undone []Recovered
	var failed []error
	for _, path := range paths {
		r, err := recoverOne(ctx, path, cleanup)
		switch {
		case errors.Is(err, errLives), errors.Is(err, errCleanup):
		case err != nil:
			failed = append(failed, err)
		case r != nil:
			undone = append(undone, *r)
		}
	}
	return undone, errors.Join(failed...)
}

// markersIn gives the paths of the markers of an id, whose guard is dead, or of all for
// "", and removes rubbish.
func markersIn(folder, id string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		if strings.HasPrefix(e.Name(), markerNew) {
			// A guard that died while it wrote has done nothing yet.
			info, err := e.Info()
			own := id != "" && strings.HasPrefix(e.Name(), markerNew+id+"-")
			if own || err == nil && time.Since(info.ModTime()) > newAge {
				_ = os.Remove(path)
			}
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), markerSuffix)
		dash := strings.LastIndexByte(name, '-') // no name of an action has one
		if ok && dash > 0 && (id == "" || name[:dash] == id) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// errCleanup is for a marker of something that is to be cleaned up, by others.
var errCleanup = errors.New("it is to be cleaned up")

// recoverOne undoes what a marker says. nil, nil: there was nothing to undo. The error
// is errLives when its guard lives, and errCleanup for a cleanup without cleanup.
func recoverOne(ctx context.Context, path string, cleanup func(context.Context, json.RawMessage) error) (*Recovered, error) {
	m, err := takeMarker(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open marker: %w", err)
	}
	n, err := m.read()
	switch {
	case errors.Is(err, ErrDamaged):
		// What it should have said is lost; kept, it would be in the way for ever.
		return nil, errors.Join(fmt.Errorf("%s is removed: %w; see whether the machine runs", path, err), m.remove())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("read marker: %w", err), m.leave())
	case n.Boot != bootID():
		return nil, m.remove()
	}
	undo := n.undo
	if n.Cleanup != nil {
		if cleanup == nil {
			return nil, errors.Join(errCleanup, m.leave())
		}
		undo = func(ctx context.Context) error { return cleanup(ctx, n.Cleanup) }
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTry)
	defer cancel()
	if err := undo(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s, held since %s: %w: %w (when the machine is known to run, remove %s)",
			n.Name, n.Since.Format(time.RFC3339), ErrNotUndone, err, path), m.leave())
	}
	return &Recovered{ID: n.ID, Name: n.Name, Since: n.Since}, m.remove()
}

// undo undoes what was held.
func (n note) undo(ctx context.Context) error {
	d := n.Action.deed()
	defer d.close()
	_, err := d.undo(ctx)
	return err
}
