package format

import (
	"testing"
	"time"
)

func TestMarksSayWhatHolds(t *testing.T) {
	t0 := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	at := func(number uint32, after time.Duration) Stored { return Stored{number, t0.Add(after)} }
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		marks          []Stored
		forgotten, pin bool
		forgottenSince time.Duration
		wantNext       uint32
	}{
		"none":                       {nil, false, false, 0, 0},
		"set":                        {[]Stored{at(0, 0)}, true, true, 0, 1},
		"taken back":                 {[]Stored{at(0, 0), at(1, day)}, false, false, 0, 2},
		"set again":                  {[]Stored{at(0, 0), at(1, day), at(2, 2*day)}, true, true, 2 * day, 3},
		"the last moment":            {[]Stored{at(0, 0), at(1, 6*day-1)}, false, false, 0, 2},
		"taken back too late":        {[]Stored{at(0, 0), at(1, 6*day)}, true, false, 0, 2},
		"too late, and once more":    {[]Stored{at(0, 0), at(1, 6*day), at(3, 7*day)}, true, false, 0, 4},
		"set twice":                  {[]Stored{at(0, 0), at(2, day)}, true, true, 0, 3},
		"taken back, never set":      {[]Stored{at(1, 0)}, false, false, 0, 2},
		"too late, then set: is old": {[]Stored{at(0, 0), at(1, 8*day), at(2, 9*day)}, true, true, 0, 3},
	} {
		f, p := TombstoneStanding(c.marks), PinStanding(c.marks)
		if f.Set != c.forgotten || p.Set != c.pin || f.Next != c.wantNext || p.Next != c.wantNext {
			t.Errorf("%s: %+v and %+v", name, f, p)
		}
		if f.Set && !f.Since.Equal(t0.Add(c.forgottenSince)) {
			t.Errorf("%s: since %s", name, f.Since)
		}
	}
}
