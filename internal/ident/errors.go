package ident

import (
	"errors"
	"fmt"
)

// ErrSyntax is what errors.Is finds in every error of a Parse function of this
// package.
var ErrSyntax = errors.New("malformed identifier")

// SyntaxError says which identifier was malformed and what form it must have.
type SyntaxError struct {
	What string // "run id", "machine name", ...
	Text string // what was given, shortened
	Want string // the form it must have
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%q is not a %s: it must be %s", e.Text, e.What, e.Want)
}

// Unwrap lets errors.Is find ErrSyntax.
func (e *SyntaxError) Unwrap() error { return ErrSyntax }

// maxQuotedBytes bounds what an error repeats of text that somebody else wrote.
const maxQuotedBytes = 80

func syntaxError(what, text, want string) error {
	if len(text) > maxQuotedBytes {
		text = text[:maxQuotedBytes] + "..."
	}
	return &SyntaxError{What: what, Text: text, Want: want}
}
