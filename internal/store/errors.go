package store

import (
	"errors"
	"strings"
)

// The classes of errors. The class decides what callers do, the text explains.
var (
	// ErrNotFound: there is no such object.
	ErrNotFound = errors.New("not found")
	// ErrNoStore: there is no such folder or bucket, or it has gone. It is kept
	// apart from ErrNotFound because nothing may be concluded from it (I7).
	ErrNoStore = errors.New("no store there")
	// ErrExists: the key was taken before; the object there is not ours, or is
	// of an earlier attempt.
	ErrExists = errors.New("already exists")
	// ErrRange: the object is shorter than the range asked for.
	ErrRange = errors.New("range beyond the end of the object")
	// ErrDenied: credentials are wrong, or lack the right to do this.
	ErrDenied = errors.New("access denied")
	// ErrFull: no space, or a quota is used up.
	ErrFull = errors.New("store is full")
	// ErrCorrupt: the bytes are not what they should be: a checksum was refused,
	// an object ended early, a listing was out of order.
	ErrCorrupt = errors.New("damaged")
	// ErrInvalid: the call or the configuration is wrong; the store was not asked.
	ErrInvalid = errors.New("invalid")
	// ErrTransient: the same call may succeed later.
	ErrTransient = errors.New("temporary failure")
	// ErrUnreachable: no answer came from the store. It is also ErrTransient.
	ErrUnreachable error = &subclass{text: "store is unreachable", of: ErrTransient}
	// ErrBusy: the store asks for fewer requests (S3: SlowDown, 503). It is also
	// ErrTransient.
	ErrBusy error = &subclass{text: "store asks to slow down", of: ErrTransient}
)

// subclass is a sentinel that matches a wider one too.
type subclass struct {
	text string
	of   error
}

func (s *subclass) Error() string { return s.text }
func (s *subclass) Unwrap() error { return s.of }

// Error is what every Store returns: the place (operation and key), the class
// and cause, and what the operator can do. It never holds a secret.
type Error struct {
	Op   string // put, get, stat, list, delete, open
	Key  string // key or prefix; empty where there is none
	Err  error  // class and cause, for errors.Is and errors.As
	Hint string // what to do about it; may be empty
}

// Error renders "op key: cause (hint)".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Key != "" {
		b.WriteString(" " + e.Key)
	}
	b.WriteString(": " + e.Err.Error())
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap gives the class and the cause.
func (e *Error) Unwrap() error { return e.Err }

// Fail makes an *Error of a class (a sentinel, or nil when it is not known) and
// a cause (or nil). Errors that already are an *Error keep their place: see Wrap.
func Fail(op, key string, class, cause error, hint string) error {
	switch {
	case class == nil && cause == nil:
		return nil
	case class == nil:
		return &Error{Op: op, Key: key, Err: cause, Hint: hint}
	case cause == nil || errors.Is(cause, class):
		if cause == nil {
			cause = class
		}
		return &Error{Op: op, Key: key, Err: cause, Hint: hint}
	}
	return &Error{Op: op, Key: key, Err: &classified{class, cause}, Hint: hint}
}

// Wrap gives err a place when it has none; an *Error is returned as it is.
func Wrap(op, key string, err error) error {
	var placed *Error
	if err == nil || errors.As(err, &placed) {
		return err
	}
	return &Error{Op: op, Key: key, Err: err}
}

// classified joins a class and a cause: the text has both, errors.Is finds both.
type classified struct{ class, cause error }

func (c *classified) Error() string   { return c.class.Error() + ": " + c.cause.Error() }
func (c *classified) Unwrap() []error { return []error{c.class, c.cause} }
