package guard

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// The two sides speak JSON, one message a line.

// lineBytesMax bounds a message; the longest is the one with the spec.
const lineBytesMax = 4 << 20

// The operations, in the order in which they come.
const (
	opBegin   = "begin"   // Spec
	opHold    = "hold"    // Name, Budget
	opRelease = "release" // Name
	opDone    = "done"
)

// request is what the parent says.
type request struct {
	ID     uint64        `json:"id"`
	Op     string        `json:"op"`
	Spec   *Spec         `json:"spec,omitempty"`
	Name   string        `json:"name,omitempty"`
	Budget time.Duration `json:"budget,omitempty"`
}

// response is what the guard says to the request with the same id, in any order.
type response struct {
	ID       uint64    `json:"id"`
	Failure  *failure  `json:"failure,omitempty"`
	Held     *Held     `json:"held,omitempty"`
	Released *Released `json:"released,omitempty"`
}

func (r response) unpack() (response, error) {
	if r.Failure != nil {
		return r, r.Failure
	}
	return r, nil
}

// newLines reads messages.
func newLines(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(nil, lineBytesMax)
	return s
}

func parseRequest(line []byte) (request, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return request{}, fmt.Errorf("%w: no request: %w", ErrSpec, err)
	}
	switch {
	case r.Op == opBegin && r.Spec != nil:
		if err := r.Spec.check(); err != nil {
			return r, err
		}
		return r, nil
	case r.Op == opHold, r.Op == opRelease, r.Op == opDone:
		return r, nil
	}
	return r, fmt.Errorf("%w: no operation: %q", ErrSpec, r.Op)
}

func writeLine(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) >= lineBytesMax {
		return fmt.Errorf("%w: a message of %d bytes", ErrSpec, len(text))
	}
	_, err = w.Write(append(text, '\n'))
	return err
}
