package fault_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func TestWithoutRulesAFaultStoreKeepsThePromisesOfAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return fault.New(mem.New(), 0) })
}

func put(t *testing.T, s store.Store, key, content string) error {
	return s.Put(t.Context(), key, store.NewBody([]byte(content)), store.PutOptions{})
}

func content(t *testing.T, s store.Store, key string) (string, error) {
	b, err := store.ReadAll(t.Context(), s, key, 1<<20)
	return string(b), err
}

func TestARuleHitsTheCallsItNames(t *testing.T) {
	s := fault.New(mem.New(), 0, fault.Rule{Verb: fault.Put, Prefix: "p/", From: 2, Count: 2, Err: store.ErrFull})
	for i, c := range []struct {
		key  string
		fail bool
	}{{"p/1", false}, {"q/1", false}, {"p/2", true}, {"q/2", false}, {"p/3", true}, {"p/4", false}} {
		if err := put(t, s, c.key, "x"); errors.Is(err, store.ErrFull) != c.fail {
			t.Errorf("put %d of %s: %v", i, c.key, err)
		}
	}
	if _, err := s.Stat(t.Context(), "p/2"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a put that failed before its effect had one: %v", err)
	}
	if s.Calls(fault.Put) != 6 || s.Calls(fault.Stat) != 1 || s.Calls(fault.Any) != 7 {
		t.Errorf("calls: %d %d %d", s.Calls(fault.Put), s.Calls(fault.Stat), s.Calls(fault.Any))
	}
}

func TestALostAnswerComesAfterTheEffect(t *testing.T) {
	s := fault.New(mem.New(), 0, fault.Rule{Kind: fault.After})
	if err := put(t, s, "a", "x"); !errors.Is(err, store.ErrTransient) {
		t.Errorf("put: %v", err)
	}
	if got, err := content(t, s, "a"); err != nil || got != "x" {
		t.Errorf("the object is %q, %v", got, err)
	}
}

func TestALatePutArrivesLaterAndNeverOverwrites(t *testing.T) {
	s := fault.New(mem.New(), 0, fault.Rule{Verb: fault.Put, Count: 2, Kind: fault.Late, Delay: 2})
	for _, key := range []string{"a", "b"} {
		if err := put(t, s, key, "late"); !errors.Is(err, store.ErrTransient) {
			t.Errorf("put: %v", err)
		}
	}
	if err := put(t, s, "b", "early"); err != nil { // third call: "a" is due
		t.Errorf("put before the late one: %v", err)
	}
	if err := s.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := content(t, s, "a"); got != "late" || err != nil {
		t.Errorf("a is %q, %v", got, err)
	}
	if got, err := content(t, s, "b"); got != "early" || err != nil {
		t.Errorf("b is %q, %v", got, err)
	}
}

func TestABadServerOverwritesGarblesTruncatesResizesAndOmits(t *testing.T) {
	inner := mem.New()
	s := fault.New(inner, 0)
	for _, key := range []string{"a", "b", "c", "d"} {
		if err := put(t, s, key, "0123456789"); err != nil {
			t.Fatal(err)
		}
	}
	s.Add(fault.Rule{Kind: fault.Overwrite})
	if err := put(t, s, "a", "second"); err != nil {
		t.Errorf("put over an object: %v", err)
	}
	if got, _ := content(t, s, "a"); got != "second" {
		t.Errorf("a is %q", got)
	}

	s.Add(fault.Rule{Verb: fault.Get, Kind: fault.Garble})
	if got, err := content(t, s, "b"); err != nil || len(got) != 10 || got == "0123456789" {
		t.Errorf("garbled: %q, %v", got, err)
	}
	s.Add(fault.Rule{Verb: fault.Get, Kind: fault.Truncate})
	r, err := s.Get(t.Context(), "b", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); !bytes.Equal(got, []byte("01234")) || !errors.Is(err, store.ErrTransient) {
		t.Errorf("truncated: %q, %v", got, err)
	}

	s.Add(fault.Rule{Verb: fault.Stat, Kind: fault.Resize}, fault.Rule{Verb: fault.List, Kind: fault.Omit, Prefix: "c"},
		fault.Rule{Verb: fault.List, From: 2, Kind: fault.Truncate})
	if info, err := s.Stat(t.Context(), "b"); err != nil || info.Size != 11 {
		t.Errorf("resized: %+v, %v", info, err)
	}
	if keys, err := list(t, s); keys != "abd" || err != nil {
		t.Errorf("omitted: %s, %v", keys, err)
	}
	if keys, err := list(t, s); keys != "ab" || !errors.Is(err, store.ErrTransient) {
		t.Errorf("truncated: %s, %v", keys, err)
	}
	if keys, err := list(t, s); keys != "abcd" || err != nil {
		t.Errorf("healthy: %s, %v", keys, err)
	}
}

func list(t *testing.T, s store.Store) (keys string, err error) {
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			return keys, err
		}
		keys += info.Key
	}
	return keys, nil
}

func TestStandingFaults(t *testing.T) {
	s := fault.New(mem.New(), 0, fault.DenyDelete(), fault.Full(2))
	if err := s.Delete(t.Context(), []string{"a"}); !errors.Is(err, store.ErrDenied) {
		t.Errorf("delete: %v", err)
	}
	if err := put(t, s, "a", "x"); err != nil {
		t.Error(err)
	}
	for range 3 {
		if err := put(t, s, "b", "x"); !errors.Is(err, store.ErrFull) {
			t.Errorf("put into a full store: %v", err)
		}
	}
	s.Clear()
	s.Add(fault.Down(2))
	if _, err := s.Stat(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	_, err := content(t, s, "a")
	_, lerr := list(t, s)
	for _, err := range []error{err, lerr, put(t, s, "c", ""), s.Delete(t.Context(), nil)} {
		if !errors.Is(err, store.ErrUnreachable) || !errors.Is(err, store.ErrTransient) {
			t.Errorf("a store that is down: %v", err)
		}
	}
}

func TestChanceIsTheSameForTheSameSeed(t *testing.T) {
	run := func(seed uint64) (hits string) {
		s := fault.New(mem.New(), seed, fault.Rule{Verb: fault.Stat, Count: fault.Forever, Chance: 0.5})
		for range 64 {
			if _, err := s.Stat(t.Context(), "a"); errors.Is(err, store.ErrTransient) {
				hits += "x"
			} else {
				hits += "."
			}
		}
		return hits
	}
	first, again, other := run(1), run(1), run(2)
	if first != again || first == other {
		t.Errorf("chance does not follow the seed:\n%s\n%s\n%s", first, again, other)
	}
}
