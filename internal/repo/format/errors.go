package format

import (
	"errors"
	"fmt"
)

// The classes of errors of this package, found by errors.Is.
var (
	// ErrCorrupt: the bytes break a rule of the format. Reading them again from the
	// same place gives the same.
	ErrCorrupt = errors.New("corrupt bytes")
	// ErrUnsupported: the bytes are sound, but a later version of qbackup wrote them.
	ErrUnsupported = errors.New("needs a newer qbackup")
	// ErrMisplaced: the bytes are sound, but name another object than the one asked
	// for: swapped, renamed, or copied from elsewhere.
	ErrMisplaced = errors.New("object does not belong here")
	// ErrInvalid: an encoder was given a value that the format cannot hold.
	ErrInvalid = errors.New("value does not fit the format")
	// ErrPackFull: the pack or map object has no room for this; close it and begin
	// the next.
	ErrPackFull = errors.New("object is full")
)

// Error carries the place: the structure and the byte in it where the trouble is.
type Error struct {
	Structure string // "pack index", "record", ...
	Offset    int64  // from the start of the structure, -1 when there is no one place
	Detail    string
	Err       error // one of the sentinels above
}

func (e *Error) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%s: %s: %v", e.Structure, e.Detail, e.Err)
	}
	return fmt.Sprintf("%s at byte %d: %s: %v", e.Structure, e.Offset, e.Detail, e.Err)
}

// Unwrap lets errors.Is find the class.
func (e *Error) Unwrap() error { return e.Err }

func corrupt(structure string, offset int, format string, args ...any) error {
	return &Error{Structure: structure, Offset: int64(offset), Detail: fmt.Sprintf(format, args...), Err: ErrCorrupt}
}

func unsupported(structure string, format string, args ...any) error {
	return &Error{Structure: structure, Offset: -1, Detail: fmt.Sprintf(format, args...), Err: ErrUnsupported}
}

func misplaced(structure string, format string, args ...any) error {
	return &Error{Structure: structure, Offset: -1, Detail: fmt.Sprintf(format, args...), Err: ErrMisplaced}
}

func invalid(structure string, format string, args ...any) error {
	return &Error{Structure: structure, Offset: -1, Detail: fmt.Sprintf(format, args...), Err: ErrInvalid}
}
