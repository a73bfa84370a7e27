package store

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Exact wraps the body of a Get answer so that it keeps Get's promise: exactly n
// bytes, then io.EOF. When the source ends early, or fails, the error names op
// "get", the key and how much arrived, and is of the given class (ErrTransient
// where another request may get the rest, ErrCorrupt where it cannot). Bytes
// beyond n are not read. Closing closes r.
func Exact(r io.ReadCloser, key string, n int64, class error) io.ReadCloser {
	return &exact{r: r, key: key, want: n, class: class}
}

type exact struct {
	r         io.ReadCloser
	key       string
	want, got int64
	class     error
	err       error
}

func (e *exact) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	if e.got == e.want {
		e.err = io.EOF
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), e.want-e.got)]
	n, err := e.r.Read(p)
	e.got += int64(n)
	if err != nil && e.got < e.want {
		e.err = e.short(err)
		return n, e.err
	}
	return n, nil
}

func (e *exact) short(cause error) error {
	if errors.Is(cause, io.EOF) {
		cause = io.ErrUnexpectedEOF
	}
	class := e.class
	for _, known := range []error{ErrTransient, ErrCorrupt, ErrDenied, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(cause, known) {
			class = nil // the cause says better what it is
		}
	}
	return Fail("get", e.key, class, fmt.Errorf("after %d of %d bytes: %w", e.got, e.want, cause), "")
}

func (e *exact) Close() error { return e.r.Close() }
