package guard

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"time"
)

// The budget and the persistence that are taken when none is given.
const (
	BudgetDefault  = 5 * time.Second
	PersistDefault = 2 * time.Minute
)

// Spec is what a guard is told when it starts.
type Spec struct {
	// Folder is where markers are; it is made when it is not there. It is absolute.
	Folder string `json:"folder"`
	// ID is a word that no other guard uses, such as the id of a run.
	ID string `json:"id"`
	// Actions are the things that can be held, by name.
	Actions map[string]Action `json:"actions,omitempty"`
	// Cleanup is handed to Hooks.Cleanup when the parent ends without Done, and to that
	// of Recover when the guard dies, too.
	Cleanup json.RawMessage `json:"cleanup,omitempty"`
	// Persist is how long the guard tries to undo a thing, and how long to clean up;
	// 0: PersistDefault.
	Persist time.Duration `json:"persist,omitempty"`

	// Kept says that the guard was started with its end of the socket for connections
	// that it keeps. Start sets it.
	Kept bool `json:"kept,omitempty"`
}

// Action is a thing that can be done and undone. One of the fields is set.
type Action struct {
	// Agent is the socket of a guest agent: its file systems are frozen and thawed.
	Agent string `json:"agent,omitempty"`
	// Exec is a pair of programs.
	Exec *Exec `json:"exec,omitempty"`
}

// Exec does a thing by a program and undoes it by another. A program that exits with
// anything but 0 has failed. Both run with LC_ALL=C and without input.
type Exec struct {
	Do   []string `json:"do"`
	Undo []string `json:"undo"`
	// Counts says that the first number that each of them prints is how many file
	// systems were frozen or thawed, as virsh domfsfreeze and domfsthaw print it.
	Counts bool `json:"counts,omitempty"`
}

// NameCleanup is the name under which Recover tells of a cleanup.
const NameCleanup = "cleanup"

// Names become parts of file names.
var (
	idPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	namePattern = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
)

func (s *Spec) check() error {
	if !filepath.IsAbs(s.Folder) {
		return fmt.Errorf("%w: the folder %q is not absolute", ErrSpec, s.Folder)
	}
	if !idPattern.MatchString(s.ID) {
		return fmt.Errorf("%w: %q is no id", ErrSpec, s.ID)
	}
	for name, a := range s.Actions {
		if !namePattern.MatchString(name) || name == NameCleanup {
			return fmt.Errorf("%w: %q is no name", ErrSpec, name)
		}
		if err := a.check(); err != nil {
			return fmt.Errorf("action %s: %w", name, err)
		}
	}
	if s.Persist <= 0 {
		s.Persist = PersistDefault
	}
	return nil
}

func (a Action) check() error {
	switch {
	case (a.Agent == "") == (a.Exec == nil):
		return fmt.Errorf("%w: an action is either an agent or programs", ErrSpec)
	case a.Exec != nil && (len(a.Exec.Do) == 0 || len(a.Exec.Undo) == 0):
		return fmt.Errorf("%w: a program is missing", ErrSpec)
	}
	return nil
}

// Held says that a thing is in force.
type Held struct {
	// Count is how many file systems were frozen; 0 when that is not counted.
	Count int `json:"count"`
	// At is when the guard knew that it was done.
	At time.Time `json:"at"`
}

// By is who or what made a guard undo a thing.
type By string

// The reasons for undoing.
const (
	ByRelease By = "release" // the parent's call
	ByBudget  By = "budget"  // the time that the parent gave was over
	BySignal  By = "signal"  // the guard was told to end
	ByParent  By = "parent"  // the parent has died
	ByDeath   By = "death"   // the guard has died, and the parent did it
)

// Released says how a thing ended.
type Released struct {
	By By `json:"by"`
	// Frozen and Thawed are the counts of file systems, 0 where nothing is counted.
	Frozen int `json:"frozen"`
	Thawed int `json:"thawed"`
	// For is how long it was in force at most: from before it was done until it was
	// undone.
	For time.Duration `json:"for"`
}

// Broken says in a few words why the thing may not have been in force until Release was
// called; "" when it was: nothing else made the guard undo it, and no file system had
// thawed by itself.
func (r Released) Broken() string {
	switch r.By {
	case ByRelease:
	case ByBudget:
		return fmt.Sprintf("it was undone after %v, when its time was over", r.For.Round(time.Millisecond))
	case BySignal:
		return "the guard process was told to end"
	case ByParent, ByDeath:
		return "a process that held it has died"
	default:
		return fmt.Sprintf("it was undone by %q", string(r.By))
	}
	if r.Thawed < r.Frozen {
		return fmt.Sprintf("%d of %d file systems had thawed before", r.Frozen-r.Thawed, r.Frozen)
	}
	return ""
}
