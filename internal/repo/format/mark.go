package format

import "time"

// Mark says something about a point that can be taken back: a tombstone, that it is forgotten, or a pin, that no policy may
// forget it. Marks of a kind are numbered from 0 on: even ones set it, odd ones take back the one before. None is ever
// deleted, so that no delayed write changes what holds.
type Mark struct {
	Identity
	Number uint32    `json:"number,omitempty"`
	Nonce  Nonce     `json:"nonce"`
	By     string    `json:"by"`
	Host   string    `json:"host,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Time   time.Time `json:"time"`
}

// AppendMark appends the document; kind is KindTombstone or KindPin.
func AppendMark(dst []byte, kind Kind, m *Mark) ([]byte, error) {
	v := *m
	v.Time = m.Time.UTC()
	return appendDocument(dst, kind, &v, func(b []byte) (*Mark, error) { return ParseMark(b, kind, m.Identity, m.Number) })
}

// ParseMark reads the document that lies under TombstoneKey or PinKey of this identity and number.
func ParseMark(b []byte, kind Kind, at Identity, number uint32) (*Mark, error) {
	m := &Mark{}
	if err := parseDocument(b, kind, m); err != nil {
		return nil, err
	}
	what := string(kind)
	if err := checkDecision(what, m.Identity, m.Nonce, at); err != nil {
		return nil, err
	}
	if m.Number > MaxNumber {
		return nil, corrupt(what, -1, "the number is above %d", MaxNumber)
	}
	if m.Number != number {
		return nil, misplaced(what, "it is number %d, read as %d", m.Number, number)
	}
	return m, nil
}

// The times of deletion. They are part of the format: whoever deletes and whoever takes a deletion back must agree.
const (
	// Grace is how long after its tombstone was written a point can be brought back, and its data is kept.
	Grace = 7 * 24 * time.Hour
	// GraceMargin lies between the last moment at which a tombstone can be taken back and the first at which data is
	// deleted, so that a request that takes long is on one side of both.
	GraceMargin = 24 * time.Hour
	// RunAge is how long a run may give no sign of life before its slot is taken from it.
	RunAge = 3 * 24 * time.Hour
)

// Stored is when a mark was written, by the clock of the store.
type Stored struct {
	Number uint32
	At     time.Time
}

// Standing is what the marks of one kind say of a point.
type Standing struct {
	Set   bool
	Since time.Time // of the mark that set it
	Next  uint32    // the number of the next mark
}

// TombstoneStanding tells whether a point is forgotten, from its tombstones by ascending number. One is taken back only by
// a mark that was stored while Grace allowed it, whoever wrote that: a later one changes nothing.
func TombstoneStanding(marks []Stored) Standing { return standing(marks, Grace-GraceMargin) }

// PinStanding tells whether a point is pinned.
func PinStanding(marks []Stored) Standing { return standing(marks, 0) }

// standing is the one place that decides. within bounds the time in which a mark can be taken back; 0: always.
func standing(marks []Stored, within time.Duration) Standing {
	var s Standing
	for _, m := range marks {
		s.Next = m.Number + 1
		switch {
		case m.Number%2 == 0 && !s.Set:
			s.Set, s.Since = true, m.At
		case m.Number%2 == 1 && s.Set && (within == 0 || m.At.Before(s.Since.Add(within))):
			s.Set = false
		}
	}
	return s
}
