package guard

import (
	"errors"

	"github.com/qbackup/qbackup/internal/qmp"
)

// The classes of errors of this package.
var (
	// ErrNotHeld: the thing was not done, or not in time; if that is not certain, it
	// is being undone.
	ErrNotHeld = errors.New("not held")
	// ErrNotUndone: the thing could not be undone for as long as it was tried. The
	// marker stays, and Recover tries it again.
	ErrNotUndone = errors.New("could not be undone")
	// ErrGuard: the guard does not run, or has died.
	ErrGuard = errors.New("the guard process has failed")
	// ErrSpec: the spec, the name or the program is wrong.
	ErrSpec = errors.New("wrong use of the guard")
	// ErrDamaged: a marker cannot be read.
	ErrDamaged = errors.New("marker is damaged")
)

// classes are the errors that keep their identity on the way from guard to parent.
var classes = map[string]error{
	"not-held": ErrNotHeld, "not-undone": ErrNotUndone, "spec": ErrSpec,
	"nobody": qmp.ErrNobody, "agent": qmp.ErrAgent, "lost": qmp.ErrLost, "protocol": qmp.ErrProtocol,
}

// failure is an error on its way through the pipe.
type failure struct {
	Text    string   `json:"text"`
	Classes []string `json:"classes,omitempty"`
}

func pack(err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Text: err.Error()}
	for name, class := range classes {
		if errors.Is(err, class) {
			f.Classes = append(f.Classes, name)
		}
	}
	return f
}

// Error is the text as the guard had it.
func (f *failure) Error() string { return f.Text }

// Unwrap gives the classes.
func (f *failure) Unwrap() []error {
	var all []error
	for _, name := range f.Classes {
		if class := classes[name]; class != nil {
			all = append(all, class)
		}
	}
	return all
}
