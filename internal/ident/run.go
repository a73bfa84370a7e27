package ident

import (
	"bytes"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// RunIDLen is the length of a run id as text.
const RunIDLen = 26

// RunID names one run. It is made as a UUIDv7 (RFC 9562, section 5.7): its first
// 48 bits are milliseconds since 1970, so ids sort by time for people. No
// decision rests on that order, and nothing here asks for the version bits, so
// that ids from another generator stay readable.
//
// As text it has 26 characters of lower-case base32hex (RFC 4648, section 7,
// without padding): the order of the texts is the order of the bytes. 26
// characters hold 130 bits; the two spare ones are zero.
type RunID [16]byte

const runIDForm = "26 characters of 0-9a-v that end in 0, 4, 8, c, g, k, o or s"

const base32hexLower = "0123456789abcdefghijklmnopqrstuv"

// NewRunID makes a run id from the time and 74 random bits. It fails when random
// fails or when now is not between 1970 and the year 10889, the range of 48 bits.
func NewRunID(now time.Time, random io.Reader) (RunID, error) {
	var r RunID
	if _, err := io.ReadFull(random, r[:]); err != nil {
		return RunID{}, fmt.Errorf("read random bytes for a run id: %w", err)
	}
	ms := now.UnixMilli()
	if ms < 0 || ms >= 1<<48 {
		return RunID{}, fmt.Errorf("make a run id: the time %s does not fit 48 bits of milliseconds; set the clock", now.UTC().Format(time.RFC3339))
	}
	var stamp [8]byte
	binary.BigEndian.PutUint64(stamp[:], uint64(ms)<<16)
	copy(r[:6], stamp[:6])
	r[6] = r[6]&0x0f | 0x70 // version 7
	r[8] = r[8]&0x3f | 0x80 // variant of RFC 9562
	return r, nil
}

// ParseRunID reads the text of a run id. The text of the zero id names no run
// and is refused; where "none" is a possible value, use UnmarshalText.
func ParseRunID(s string) (RunID, error) {
	r, err := parseRunOrNone(s)
	if err != nil {
		return RunID{}, err
	}
	if r.IsZero() {
		return RunID{}, syntaxError("run id", s, "other than 26 zeros, which stand for no run")
	}
	return r, nil
}

func parseRunOrNone(s string) (RunID, error) {
	var r RunID
	if len(s) != RunIDLen {
		return RunID{}, syntaxError("run id", s, runIDForm)
	}
	// The decoder of encoding/base32 skips line ends and ignores spare bits;
	// encoding again and comparing leaves exactly one text for each id.
	var buf [17]byte
	n, err := runEncoding().Decode(buf[:], []byte(s))
	if err != nil || n != len(r) {
		return RunID{}, syntaxError("run id", s, runIDForm)
	}
	copy(r[:], buf[:n])
	if r.String() != s {
		return RunID{}, syntaxError("run id", s, runIDForm)
	}
	return r, nil
}

func runEncoding() *base32.Encoding {
	return base32.NewEncoding(base32hexLower).WithPadding(base32.NoPadding)
}

// String gives the 26 characters; the zero id gives 26 zeros.
func (r RunID) String() string {
	var out [RunIDLen]byte
	var acc, bits uint
	j := 0
	for _, b := range r {
		acc = acc<<8 | uint(b)
		bits += 8
		for bits >= 5 {
			bits -= 5
			out[j] = base32hexLower[acc>>bits&31]
			j++
		}
	}
	out[j] = base32hexLower[acc<<(5-bits)&31]
	return string(out[:])
}

// Time gives the millisecond in the first 48 bits, in UTC. It is what the clock
// of the host that made the id said: for display and sorting only.
func (r RunID) Time() time.Time {
	var b [8]byte
	copy(b[2:], r[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:]))).UTC()
}

// IsZero reports whether this is the zero id, which names no run.
func (r RunID) IsZero() bool { return r == RunID{} }

// Compare orders ids as bytes, and so as texts: -1, 0 or 1.
func (r RunID) Compare(o RunID) int { return bytes.Compare(r[:], o[:]) }

// MarshalText gives the text of String.
func (r RunID) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the text of String, 26 zeros included.
func (r *RunID) UnmarshalText(text []byte) error {
	parsed, err := parseRunOrNone(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}
