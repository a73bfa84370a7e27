package crashtest

import (
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

// TestAProgramThatBreaksTheOrderIsFoundOut proves that the judge can say no: the
// same backup with its effects in another order, or without some of them, must be
// found to harm somebody.
func TestAProgramThatBreaksTheOrderIsFoundOut(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		testtool.Need(t, tool)
	}
	r := scenarioIncremental().record(t)
	image := r.host.disks[0].name
	ofImage := func(e sim.Effect) bool { return e.Device == image }
	effects := r.log.Effects()
	first := slices.IndexFunc(effects, ofImage)
	last := len(effects) - 1
	for !ofImage(effects[last]) {
		last--
	}
	reset := effects[first : last+1]
	if len(reset) < 4 || reset[0].Verb != sim.Write || reset[1].Verb != sim.Sync || reset[2].Verb != sim.Write {
		t.Fatalf("the reset is not a new name, a sync, and zeros: %v", reset)
	}
	for _, c := range []struct {
		program string
		effects []sim.Effect
		want    string
	}{
		{"resets the bits before the record is there", moved(effects, first, last+1, linkOf(effects, "points")), "has no point of that run"},
		{"does not sync the folder of the record", without(effects, func(e sim.Effect) bool { return e.Verb == sim.SyncDir && e.Path == "points/web" }), "has no point of that run"},
		{"does not sync the pack", without(effects, func(e sim.Effect) bool { return e.Verb == sim.Sync && strings.HasPrefix(e.Path, "data/") }), "after the power cut: point"},
		{"does not sync the record", without(effects, func(e sim.Effect) bool { return e.Verb == sim.Sync && strings.HasPrefix(e.Path, "points/") }), "after the power cut: "},
		{"clears the bits before it changes the name", moved(effects, first+2, first+4, first), "sample mismatch"},
		{"does not sync the name before it clears the bits", slices.Concat(effects[:first+1], effects[first+2:]), "sample mismatch"},
	} {
		broken := *r
		broken.log = r.log.With(c.effects)
		found := broken.findHarm(t)
		if !strings.Contains(found, c.want) {
			t.Errorf("a program that %s: %q was found, want %q", c.program, found, c.want)
		}
	}
}

// findHarm returns what is found to be wrong with a program, "" for nothing. It
// looks at the last states first, where most has happened.
func (r *recorded) findHarm(t *testing.T) string {
	t.Helper()
	for i, c := range slices.Backward(r.states()) {
		if _, err := r.judge(t, r.log.After(c.cut), trial{keepState: true, guest: true, seed: uint64(i)}); err != nil {
			return err.Error()
		}
	}
	return ""
}

// linkOf is the number of the effect that gives the first file in a folder its
// name.
func linkOf(effects []sim.Effect, folder string) int {
	return slices.IndexFunc(effects, func(e sim.Effect) bool { return e.Verb == sim.Link && strings.HasPrefix(e.To, folder+"/") })
}

// moved has the effects from one number up to another happen before an earlier one.
func moved(effects []sim.Effect, from, to, before int) []sim.Effect {
	return slices.Concat(effects[:before], effects[from:to], effects[before:from], effects[to:])
}

func without(effects []sim.Effect, drop func(sim.Effect) bool) []sim.Effect {
	return slices.DeleteFunc(slices.Clone(effects), drop)
}
