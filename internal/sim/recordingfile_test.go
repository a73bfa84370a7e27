package sim

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func record() *RecordingFile {
	r := NewRecordingFile([]byte("........"))
	r.WriteAt([]byte("AB"), 0)
	r.Sync()
	r.WriteAt([]byte("CD"), 2)
	r.WriteAt([]byte("EFGH"), 6)
	r.Sync()
	return r
}

func TestAFileHoldsWhatWasWritten(t *testing.T) {
	r := record()
	if got := string(r.Content()); got != "ABCD..EFGH" {
		t.Errorf("content %q", got)
	}
	if n, err := r.Size(); n != 10 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	p := make([]byte, 4)
	if n, err := r.ReadAt(p, 8); n != 2 || !errors.Is(err, io.EOF) || string(p[:2]) != "GH" {
		t.Errorf("read %d, %v, %q", n, err, p)
	}
	if n, err := r.ReadAt(p, 1); n != 4 || err != nil || string(p) != "BCD." {
		t.Errorf("read %d, %v, %q", n, err, p)
	}
	if _, err := r.ReadAt(p, 10); !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %v", err)
	}
}

func TestACrashKeepsWhatWasSyncedAndAnyOfTheRest(t *testing.T) {
	r := record()
	for _, c := range []struct {
		crash Crash
		want  string
	}{
		{Crash{}, "........"},
		{Crash{Torn: 1}, "A......."},
		{Crash{Torn: 1, Tail: true}, ".B......"},
		{Crash{Done: 2}, "AB......"},
		{Crash{Done: 3, Torn: 3}, "ABCD..EFG"},
		{Crash{Done: 3, Torn: 3, Lost: []int{2}}, "AB....EFG"},
		{Crash{Done: 3, Torn: 1, Tail: true, Lost: []int{2}}, "AB......\x00H"},
		{Crash{Done: 5}, "ABCD..EFGH"},
	} {
		if got := string(r.After(c.crash)); got != c.want {
			t.Errorf("%v: %q, want %q", c.crash, got, c.want)
		}
	}
}

func TestCrashesReachEveryState(t *testing.T) {
	r := record()
	seen := map[string]int{}
	for c := range r.Crashes(CrashOptions{TornBytes: 8, Subsets: 8}) {
		seen[string(r.After(c))]++
		for _, lost := range c.Lost {
			if lost < 2 && c.Done > 1 || c.Done == 5 {
				t.Errorf("%v loses what was synced", c)
			}
		}
	}
	// 1 at the start, 2 torn, 1 synced, 2 torn; with CD there or not the last
	// write is torn at 3 places from either side, whole, or missing.
	if want := 1 + 2 + 1 + 2 + 1 + 2*7; len(seen) != want {
		t.Errorf("%d states, want %d: %v", len(seen), want, seen)
	}
}

func TestLongWritesAreTornAtSomePlaces(t *testing.T) {
	r := NewRecordingFile(nil)
	r.WriteAt(bytes.Repeat([]byte{1}, 10000), 0)
	n := 0
	for range r.Crashes(CrashOptions{TornBytes: 100, Subsets: 1, Seed: 1}) {
		n++
	}
	if n < 2*80 || n > 2*120 {
		t.Errorf("%d crashes", n)
	}
}
