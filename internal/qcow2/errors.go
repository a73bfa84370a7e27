package qcow2

import (
	"errors"
	"fmt"
	"strings"
)

// Classes of errors of this package. Every error that comes from the content of
// an image is an *Error around one of them.
var (
	// ErrNotQcow2 is reported for a file that does not begin as a qcow2 image.
	ErrNotQcow2 = errors.New("not a qcow2 image")
	// ErrCorrupt is reported for a structure that breaks the format, and for
	// an image that QEMU has marked corrupt.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrDirty is reported for an image that was not closed properly.
	ErrDirty = errors.New("image was not closed properly")
	// ErrUnsupported is reported for a valid image that needs a feature that
	// is not known here.
	ErrUnsupported = errors.New("image uses an unsupported feature")
	// ErrEncrypted is reported for images that QEMU encrypts.
	ErrEncrypted = errors.New("image is encrypted")
	// ErrNotAllowed is reported when an image refers to another file, and the
	// caller did not allow that file to be opened.
	ErrNotAllowed = errors.New("file is not allowed")
	// ErrInUse is reported for a bitmap that was not saved properly.
	ErrInUse = errors.New("bitmap is marked as in use")
	// ErrNoSpace is reported when the file cannot grow as needed.
	ErrNoSpace = errors.New("no space left")
	// ErrNotFound is reported for a bitmap that the image does not have.
	ErrNotFound = errors.New("bitmap not found")
	// ErrExists is reported for a bitmap that the image already has.
	ErrExists = errors.New("bitmap already exists")
)

// Error says where in an image something is wrong. Errors.Is reaches the class.
type Error struct {
	// Structure is the name of the structure, such as "L2 table".
	Structure string
	// Offset is its place in the image file in bytes, -1 when it has none.
	Offset int64
	// Err is what is wrong.
	Err error
	// Hint says what the operator can do; empty when there is nothing to say.
	Hint string
}

// Error puts the place first, and the hint last.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Structure)
	if e.Offset >= 0 {
		fmt.Fprintf(&b, " at byte %d", e.Offset)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

// Unwrap returns what is wrong, without the place.
func (e *Error) Unwrap() error { return e.Err }

const (
	hintCheck     = "run `qemu-img check` on the image; restore it from a copy when that finds errors"
	hintTruncated = "the file is shorter than its own tables say: it was cut or copied incompletely"
	hintRaw       = "if it is a raw disk, say so with raw:PATH; the format is never guessed"
)

// corrupt makes the error for a structure that breaks the format.
func corrupt(structure string, offset int64, format string, args ...any) error {
	return &Error{Structure: structure, Offset: offset, Hint: hintCheck,
		Err: fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrCorrupt)}
}

// truncated makes the error for a structure that lies beyond the end of the
// file.
func truncated(structure string, offset int64, format string, args ...any) error {
	return &Error{Structure: structure, Offset: offset, Hint: hintTruncated,
		Err: fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrCorrupt)}
}

// unsupported makes the error for a feature that is not known here.
func unsupported(structure string, offset int64, hint, format string, args ...any) error {
	return &Error{Structure: structure, Offset: offset, Hint: hint,
		Err: fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrUnsupported)}
}

// readFailed makes the error for a read that the operating system refused.
func readFailed(structure string, offset int64, err error) error {
	return &Error{Structure: structure, Offset: offset, Err: fmt.Errorf("read: %w", err)}
}
