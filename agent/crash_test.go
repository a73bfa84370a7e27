package agent

import (
	"errors"
	"fmt"
	"testing"

	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/testtool"
)

// crashWorld is a machine of two disks with two points, and writes since.
func crashWorld(t *testing.T) *world {
	w := newWorld(t, newGhostDisk("vda", 5*testBlockBytes+100, 1), newGhostDisk("vdb", 3*testBlockBytes, 2))
	w.guest(2)
	w.mustBackup()
	w.guest(1)
	w.mustBackup()
	w.guest(1)
	return w
}

// recover checks that the next runs need no help, whatever came before, and that
// no point is wrong. It returns the first of them.
func (w *world) recover() Summary {
	w.t.Helper()
	w.store.Clear()
	w.die, w.confirm, w.freeze = nil, nil, nil
	w.check()
	w.guest(1)
	s := w.mustBackup()
	w.guest(1)
	next := w.mustBackup()
	for _, d := range next.Disks {
		if d.Mode != incremental {
			w.t.Errorf("the second run is %s: %s", d.Mode, d.Reason)
		}
	}
	w.check()
	return s
}

// callsOf counts the store calls of one undisturbed run.
func callsOf(t *testing.T, change ...func(*Job, *Options)) int {
	w := crashWorld(t)
	before := w.store.Calls(fault.Any)
	w.mustBackup(change...)
	return w.store.Calls(fault.Any) - before
}

func TestAProcessKilledAtAnyStoreCallLosesNothing(t *testing.T) {
	for name, rescan := range map[string]bool{"increment": false, "rescan": true} {
		change := func(j *Job, o *Options) { j.Rescan = rescan }
		total := callsOf(t, change)
		if total < 10 {
			t.Fatalf("a run makes %d store calls", total)
		}
		t.Logf("%s: %d store calls", name, total)
		for _, effect := range []bool{false, true} {
			for n := 1; n <= total; n += testtool.Count(7, 1) {
				t.Run(fmt.Sprintf("%s, call %d, effect %v", name, n, effect), func(t *testing.T) {
					w := crashWorld(t)
					if effect {
						w.store.Add(fault.Rule{From: n, Kind: fault.After, Err: store.ErrUnreachable}, fault.Down(n+1))
					} else {
						w.store.Add(fault.Down(n))
					}
					s, err := w.backup(change)
					if err == nil && s.Point.IsZero() {
						t.Fatal("no error and no point")
					}
					s = w.recover()
					for _, d := range s.Disks {
						if d.Mode != incremental {
							t.Errorf("after the crash disk %s is %s: %s", d.Name, d.Mode, d.Reason)
						}
					}
				})
			}
		}
	}
}

func TestAProcessKilledInAFirstBackupLosesNothing(t *testing.T) {
	fresh := func(t *testing.T) *world {
		w := newWorld(t, newGhostDisk("vda", 5*testBlockBytes+100, 1))
		w.guest(2)
		return w
	}
	w := fresh(t)
	before := w.store.Calls(fault.Any)
	w.mustBackup()
	total := w.store.Calls(fault.Any) - before
	for n := 1; n <= total; n += testtool.Count(7, 1) {
		w := fresh(t)
		w.store.Add(fault.Rule{From: n, Kind: fault.After, Err: store.ErrUnreachable}, fault.Down(n+1))
		_, _ = w.backup()
		w.recover()
	}
}

func TestAProcessKilledAtAnyStepOfTheResetLosesNothing(t *testing.T) {
	for _, disk := range []string{"vda", "vdb"} {
		for _, step := range []string{"tear name", "clear bits", "end"} {
			t.Run(step+" "+disk, func(t *testing.T) {
				w := crashWorld(t)
				died := false
				w.die = func(at string) bool {
					died = died || at == step+" "+disk
					return died
				}
				w.mustBackup()
				if !died {
					t.Fatal("the step was not reached")
				}
				w.recover()
			})
		}
	}
}

func TestRandomDeathsInLongHistoriesLeaveOnlyTruePoints(t *testing.T) {
	for seed := range testtool.Count(2, 20) {
		w := crashWorld(t)
		for range seed {
			w.rng.Uint64() // another history
		}
		points := 0
		for range testtool.Count(20, 120) {
			w.guest(w.rng.IntN(3))
			w.store.Clear()
			w.die = nil
			switch w.rng.IntN(6) {
			case 0:
				w.store.Add(fault.Down(1 + w.rng.IntN(30)))
			case 1:
				w.store.Add(fault.Rule{Verb: fault.Put, Prefix: "points/", Kind: fault.Late, Delay: w.rng.IntN(60)}, fault.Rule{Verb: fault.Get, Prefix: "points/", From: 3, Count: fault.Forever, Err: store.ErrUnreachable})
			case 2:
				steps := w.rng.IntN(4)
				w.die = func(string) bool { steps--; return steps < 0 }
			case 3:
				w.store.Add(fault.Rule{Count: fault.Forever, Chance: 0.1, Kind: fault.After})
			case 4:
				for _, d := range w.disks {
					for i := range d.bitmaps {
						d.bitmaps[i].inUse = w.rng.IntN(3) == 0
					}
				}
			}
			if _, err := w.backup(); err == nil {
				points++
			}
		}
		if points < 5 {
			t.Errorf("only %d runs made a point", points)
		}
		w.store.Clear()
		if err := w.store.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.recover()
	}
}

func TestALostAnswerToTheRecordIsNoFailure(t *testing.T) {
	w := crashWorld(t)
	w.store.Add(fault.Rule{Verb: fault.Put, Prefix: format.PointsPrefix("web"), Kind: fault.After, Err: store.ErrUnreachable})
	s := w.mustBackup()
	wantModes(t, s, incremental, incremental)
	if len(s.NotReset) > 0 {
		t.Errorf("not reset: %+v", s.NotReset)
	}
	w.recover()
}

func TestAnUnknownOutcomeKeepsTheBitsAndTheNextRunFindsOut(t *testing.T) {
	for name, kind := range map[string]fault.Kind{"it arrived": fault.After, "it never arrives": fault.Before, "it arrives late": fault.Late} {
		t.Run(name, func(t *testing.T) {
			w := crashWorld(t)
			dirty := w.dirtyBytes()
			w.store.Add(
				fault.Rule{Verb: fault.Put, Prefix: "points/", Count: fault.Forever, Kind: kind, Err: store.ErrUnreachable, Delay: 1000},
				// The run asks for its own slot after it sent the record, for others before.
				fault.Rule{Verb: fault.Get, Prefix: "points/", From: 1 + w.slotReads(), Count: fault.Forever, Err: store.ErrUnreachable},
			)
			s, err := w.backup()
			wantError(t, err, repo.ErrUnknownOutcome)
			if w.ghost.left != 1 {
				t.Errorf("%d cuts were left undecided, want 1", w.ghost.left)
			}
			if !s.Point.IsZero() || w.dirtyBytes() != dirty {
				t.Fatalf("point %s, %d bytes dirty of %d", s.Point, w.dirtyBytes(), dirty)
			}
			w.store.Clear()
			last := w.journal().Last
			s = w.mustBackup()
			wantModes(t, s, incremental, incremental)
			wantAlarms(t, s)
			slot := w.slot(last.Run)
			if want := map[bool]repo.SlotState{true: repo.SlotCommitted, false: repo.SlotAborted}[kind == fault.After]; slot.State != want {
				t.Errorf("the slot is %s, want %s", slot.State, want)
			}
			// A record that arrives after the ABORT is void.
			if err := w.store.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			if again := w.slot(last.Run); again.State != slot.State {
				t.Errorf("the slot went from %s to %s", slot.State, again.State)
			}
			w.recover()
		})
	}
}

// slotReads counts how often an undisturbed run reads slots before its own.
func (w *world) slotReads() int {
	c := crashWorld(w.t)
	reads := 0
	c.store.Add(fault.Rule{Verb: fault.Put, Prefix: "points/", Kind: fault.Before, Err: store.ErrDenied, Count: fault.Forever})
	for n := 1; ; n++ {
		c.store.Clear()
		c.store.Add(fault.Rule{Verb: fault.Get, Prefix: "points/", From: n, Count: fault.Forever, Err: store.ErrUnreachable})
		_, err := c.backup()
		if errors.Is(err, repo.ErrUnknownOutcome) {
			return reads
		}
		if reads = n; n > 20 {
			w.t.Fatal("no outcome was unknown")
		}
	}
}

func (w *world) dirtyBytes() int {
	n := 0
	for _, d := range w.disks {
		for _, b := range d.bitmaps {
			for _, dirty := range b.dirty {
				if dirty {
					n += ghostGranularity
				}
			}
		}
	}
	return n
}

func (w *world) journal() state.Journal {
	w.t.Helper()
	s, err := state.Open(w.stateDir, state.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := repo.Open(w.t.Context(), w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	j, _ := s.Repository(r.ID()).Machine("web").Journal()
	return j
}

func TestARepositoryThatCannotBeReachedDecidesNothing(t *testing.T) {
	w := crashWorld(t)
	dirty := w.dirtyBytes()
	w.store.Add(fault.Down(4))
	_, err := w.backup()
	wantError(t, err, store.ErrUnreachable)
	if w.dirtyBytes() != dirty {
		t.Fatal("bits were lost")
	}
	w.recover()
}

func TestAFullRepositoryLosesNothing(t *testing.T) {
	w := crashWorld(t)
	dirty := w.dirtyBytes()
	w.store.Add(fault.Full(2))
	_, err := w.backup()
	wantError(t, err, store.ErrFull)
	if w.dirtyBytes() != dirty {
		t.Fatal("bits were lost")
	}
	w.recover()
}
