package ident

import (
	"encoding/hex"
	"fmt"
	"io"
)

// MaxNameLen is the greatest length of a machine's and of a disk's name.
const MaxNameLen = 128

// MachineName is the operator's name for a machine: [a-z0-9][a-z0-9._-]{0,127}.
// It is a part of object keys and of file names, hence the narrow alphabet.
type MachineName string

// ParseMachineName checks the form of a machine's name.
func ParseMachineName(s string) (MachineName, error) {
	if !validName(s, false) {
		return "", syntaxError("machine name", s, "1 to 128 characters of a-z, 0-9, '.', '_' and '-', the first a letter or a digit")
	}
	return MachineName(s), nil
}

// UnmarshalText reads a name and checks its form.
func (m *MachineName) UnmarshalText(text []byte) error {
	parsed, err := ParseMachineName(string(text))
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}

// CheckDiskName checks the form of a disk's name: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
// A restore makes file names of it, so it can hold no separator and cannot be
// "..": a path is never taken from a repository.
func CheckDiskName(s string) error {
	if !validName(s, true) {
		return syntaxError("disk name", s, "1 to 128 characters of A-Z, a-z, 0-9, '.', '_' and '-', the first a letter or a digit")
	}
	return nil
}

func validName(s string, upper bool) bool {
	if len(s) < 1 || len(s) > MaxNameLen {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', upper && c >= 'A' && c <= 'Z':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// MachineID is the random identity of a machine within a repository; its text is
// 32 lower-case hex digits. The name may be reused elsewhere, the id is not.
type MachineID [16]byte

// NewMachineID makes a random id.
func NewMachineID(random io.Reader) (MachineID, error) {
	var m MachineID
	if _, err := io.ReadFull(random, m[:]); err != nil {
		return MachineID{}, fmt.Errorf("read random bytes for a machine id: %w", err)
	}
	return m, nil
}

// ParseMachineID reads 32 lower-case hex digits.
func ParseMachineID(s string) (MachineID, error) {
	var m MachineID
	if !decodeHex(m[:], s) {
		return MachineID{}, syntaxError("machine id", s, "32 lower-case hex digits")
	}
	return m, nil
}

// String gives 32 lower-case hex digits.
func (m MachineID) String() string { return hex.EncodeToString(m[:]) }

// IsZero reports whether this is the zero id, which names no machine.
func (m MachineID) IsZero() bool { return m == MachineID{} }

// Family gives the id that the machine's bitmaps carry in their names: the first
// four bytes.
func (m MachineID) Family() FamilyID { return FamilyID(m[:4]) }

// MarshalText gives the text of String.
func (m MachineID) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the text of String.
func (m *MachineID) UnmarshalText(text []byte) error {
	parsed, err := ParseMachineID(string(text))
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}

// decodeHex fills dst from exactly as many lower-case hex digits as it needs.
// Upper-case digits are refused: one id has one text.
func decodeHex(dst []byte, s string) bool {
	if len(s) != 2*len(dst) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}
