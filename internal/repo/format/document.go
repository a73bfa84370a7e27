package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/qbackup/qbackup/internal/ident"
)

// Kind is the kind of a document, the second word of its first line.
type Kind string

// The kinds of documents.
const (
	KindRepository Kind = "repository"
	KindMachine    Kind = "machine"
	KindIntent     Kind = "intent"
	KindRecord     Kind = "record"
	KindAbort      Kind = "abort"
	KindTombstone  Kind = "tombstone"
	KindPin        Kind = "pin"
	KindVerdict    Kind = "verdict"
)

const (
	documentWord     = "qbackup"
	trailerWord      = "blake3 "
	trailerLineBytes = len(trailerWord) + 64 + 1
)

// Identity is what every document about a run repeats of its own key, and the
// repository and machine it belongs to: a document that was copied, renamed or
// replayed under another key is noticed (ErrMisplaced).
type Identity struct {
	Repository RepositoryID      `json:"repository"`
	Machine    ident.MachineName `json:"machine"`
	MachineID  ident.MachineID   `json:"machine_id"`
	Run        ident.RunID       `json:"run"`
}

// check compares the identity with the one that the reader expects, made from the
// key and from what it knows. Machine and run are always compared, repository and
// machine id only when the expectation has them.
func (i Identity) check(what string, want Identity) error {
	switch {
	case i.Machine != want.Machine:
		return misplaced(what, "it is of machine %q, read under %q", i.Machine, want.Machine)
	case i.Run != want.Run:
		return misplaced(what, "it is of run %s, read under %s", i.Run, want.Run)
	case !want.Repository.IsZero() && i.Repository != want.Repository:
		return misplaced(what, "it is of repository %s, read in %s", i.Repository, want.Repository)
	case !want.MachineID.IsZero() && i.MachineID != want.MachineID:
		return misplaced(what, "it is of machine id %s, read under %s", i.MachineID, want.MachineID)
	}
	return nil
}

// validate requires all four parts.
func (i Identity) validate(what string) error {
	if i.Repository.IsZero() || i.Machine == "" || i.MachineID.IsZero() || i.Run.IsZero() {
		return corrupt(what, -1, "repository, machine, machine id or run is missing")
	}
	return nil
}

// DocumentKind verifies a document's three lines and its hash and gives its kind.
func DocumentKind(b []byte) (Kind, error) {
	kind, _, err := splitDocument(b)
	return kind, err
}

// splitDocument checks all that does not depend on the kind. The hash comes before
// kind and version, so that a flipped bit there is called what it is.
func splitDocument(b []byte) (Kind, []byte, error) {
	if len(b) > MaxDocumentBytes {
		return "", nil, corrupt("document", -1, "%d bytes exceed the limit of %d", len(b), MaxDocumentBytes)
	}
	split := len(b) - trailerLineBytes
	if split < 1 || b[split-1] != '\n' || !bytes.HasPrefix(b[split:], []byte(trailerWord)) || b[len(b)-1] != '\n' {
		return "", nil, corrupt("document", max(split, 0), "no line with a hash at the end: truncated, or not a document of qbackup")
	}
	var stored Hash
	if err := stored.UnmarshalText(b[split+len(trailerWord) : len(b)-1]); err != nil {
		return "", nil, corrupt("document", split, "the hash at the end is malformed")
	}
	if SumHash(b[:split]) != stored {
		return "", nil, corrupt("document", split, "the hash at the end does not match the text before it")
	}
	first, body, _ := bytes.Cut(b[:split], []byte("\n"))
	words := strings.Split(string(first), " ")
	if len(words) != 3 || words[0] != documentWord {
		return "", nil, corrupt("document", 0, "the first line is not \"qbackup <kind> <version>\"")
	}
	if words[2] != fmt.Sprint(Version) {
		return "", nil, unsupported("document", "it is a %.20q of version %.20q, this program reads version %d", words[1], words[2], Version)
	}
	if len(body) < 1 || bytes.IndexByte(body, '\n') != len(body)-1 || !utf8.Valid(body) {
		return "", nil, corrupt("document", len(first)+1, "the body is not one line of UTF-8")
	}
	return Kind(words[1]), body[:len(body)-1], nil
}

// parseDocument fills v from a document of the wanted kind. Fields that v does not
// have are ignored; a feature in "must_read" that this program does not know stops it.
func parseDocument(b []byte, want Kind, v any) error {
	kind, body, err := splitDocument(b)
	if err != nil {
		return fmt.Errorf("parse %s: %w", want, err)
	}
	if kind != want {
		return corrupt(string(want), 0, "the document is of kind %.20q", string(kind))
	}
	var needs struct {
		MustRead []string `json:"must_read"`
	}
	if err := json.Unmarshal(body, &needs); err != nil {
		return corrupt(string(want), 0, "the body is not a JSON object: %v", err)
	}
	if len(needs.MustRead) > 0 {
		return unsupported(string(want), "reading it needs the feature %.40q", needs.MustRead[0])
	}
	if err := json.Unmarshal(body, v); err != nil {
		return corrupt(string(want), 0, "the body does not have the form of its kind: %v", err)
	}
	return nil
}

// marshalDocument writes the three lines.
func marshalDocument(dst []byte, kind Kind, v any) ([]byte, error) {
	if err := checkText(string(kind), reflect.ValueOf(v)); err != nil {
		return nil, err
	}
	body, err := json.Marshal(v)
	if err != nil {
		return nil, invalid(string(kind), "cannot be written as JSON: %v", err)
	}
	start := len(dst)
	dst = fmt.Appendf(dst, "%s %s %d\n", documentWord, kind, Version)
	dst = append(append(dst, body...), '\n')
	sum := SumHash(dst[start:])
	dst = fmt.Appendf(dst, "%s%s\n", trailerWord, sum)
	if n := len(dst) - start; n > MaxDocumentBytes {
		return nil, invalid(string(kind), "its %d bytes exceed the %d of a document; split the machine into several with fewer disks", n, MaxDocumentBytes)
	}
	return dst, nil
}

// appendDocument writes v, reads it back and compares before anybody sees it.
func appendDocument[T any](dst []byte, kind Kind, v *T, parse func([]byte) (*T, error)) ([]byte, error) {
	start := len(dst)
	dst, err := marshalDocument(dst, kind, v)
	if err != nil {
		return nil, err
	}
	back, err := parse(dst[start:])
	if err != nil {
		return nil, invalid(string(kind), "what was written cannot be read back: %v", err)
	}
	again, err := marshalDocument(nil, kind, back)
	if err != nil || !bytes.Equal(again, dst[start:]) {
		return nil, invalid(string(kind), "what was read back differs from what was written")
	}
	return dst, nil
}

// checkText refuses strings that JSON would change in silence (not UTF-8) or that
// are longer than any reader wants to see.
func checkText(what string, v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); len(s) > MaxTextBytes || !utf8.ValidString(s) {
			return invalid(what, "the text %.60q is not UTF-8 or longer than %d bytes", s, MaxTextBytes)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return checkText(what, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			if err := checkText(what, v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return nil
		}
		for i := range v.NumField() {
			if err := checkText(what, v.Field(i)); err != nil {
				return err
			}
		}
	}
	return nil
}
