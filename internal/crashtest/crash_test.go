package crashtest

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestAPowerCutInAFirstBackupHarmsNobody(t *testing.T) { scenarioFirst().prove(t) }

func TestAPowerCutInAnIncrementHarmsNobody(t *testing.T) { scenarioIncremental().prove(t) }

func TestAPowerCutInAnIncrementOverSeveralBitmapsHarmsNobody(t *testing.T) {
	scenarioSeveralBitmaps().prove(t)
}

func TestAPowerCutInARescanOfABitmapInUseHarmsNobody(t *testing.T) { scenarioInUse().prove(t) }

func TestAPowerCutInARescanOfHiddenBitmapsHarmsNobody(t *testing.T) { scenarioHidden().prove(t) }

func TestAPowerCutInARescanThatWasAskedForHarmsNobody(t *testing.T) {
	scenarioAskedForRescan().prove(t)
}

func TestAPowerCutAfterADiscardHarmsNobody(t *testing.T) { scenarioDiscard().prove(t) }

func TestAPowerCutInAFirstBackupOfTwoDisksHarmsNobody(t *testing.T) {
	scenarioTwoDisksFirst().prove(t)
}

func TestAPowerCutInAnIncrementOfTwoDisksHarmsNobody(t *testing.T) { scenarioTwoDisks().prove(t) }

func TestAPowerCutInAnImageOfSmallClustersHarmsNobody(t *testing.T) { scenarioSmallClusters().prove(t) }

func TestAPowerCutAfterAPowerCutHarmsNobody(t *testing.T) { scenarioNotReset().prove(t) }

// cutState is the first of the power cuts that leave a state, and what tells that
// state's images from others.
type cutState struct {
	cut    sim.PowerCut
	images [sha256.Size]byte
}

// visible is a state without files that have no name yet: a store does not show
// them.
func visible(s sim.State) sim.State {
	v := sim.State{Images: s.Images, Folders: maps.Clone(s.Folders)}
	v.Folders[repoDevice] = maps.Clone(s.Folders[repoDevice])
	maps.DeleteFunc(v.Folders[repoDevice], func(name string, _ sim.Entry) bool { return strings.Contains(name, ".tmp-") })
	return v
}

// states returns the states that power cuts leave, in the order of the cuts. Of
// those that a store shows the same way there is only the first.
func (r *recorded) states() []cutState {
	// Two disks have twice the states, and each takes twice the time.
	share := len(r.host.disks) * len(r.host.disks)
	o := sim.CutOptions{Subsets: testtool.Count(1, 12/share), Tears: testtool.Count(2, 32/share), Seed: 1}
	seen := map[[sha256.Size]byte]bool{}
	var list []cutState
	for c := range r.log.PowerCuts(o) {
		s := r.log.After(c)
		if sum := visible(s).Sum(); !seen[sum] {
			seen[sum] = true
			list = append(list, cutState{c, sim.State{Images: s.Images}.Sum()})
		}
	}
	return list
}

// prove records the backup, cuts the power everywhere in it, and judges what is
// left.
func (s scenario) prove(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		testtool.Need(t, tool)
	}
	r := s.record(t)
	states := r.states()
	byQEMU, recovered := r.forQEMU(states), 0
	outcomes := map[string]int{}
	for i, c := range states {
		state := r.log.After(c.cut)
		for n, trial := range r.trials(i, len(states), state) {
			trial.qemu = byQEMU[i] && n%3 == 0
			next, err := r.judge(t, state, trial)
			if err != nil {
				t.Fatalf("%v; %v: %v\n%s", c.cut, trial, err, r.around(c.cut))
			}
			for _, d := range next.Disks {
				outcomes[strings.TrimSpace(d.Mode+" "+string(d.Reason))]++
			}
			if !trial.look {
				recovered++
			}
		}
	}
	t.Logf("%d effects, %d states, %d of them also by QEMU, %d recoveries: %v", len(r.log.Effects()), len(states), len(byQEMU), recovered, outcomes)
}

// trials returns how a state is judged: in all ways in a long test, else in one,
// and states next to each other in different ones. Of many states only some are
// recovered from in a short test.
func (r *recorded) trials(i, states int, s sim.State) []trial {
	var all []trial
	for n := range 4 {
		all = append(all, trial{keepState: n&1 == 0, guest: n&2 == 0, seed: uint64(i*8 + n)})
	}
	_, committed := s.Folders[repoDevice][format.PointKey(machine, r.point)]
	for n := range 2 {
		if committed {
			all = append(all, trial{keepState: n == 0, lost: true, guest: true, seed: uint64(i*8 + 4 + n)})
		}
	}
	if testtool.Count(0, 1) == 1 {
		return all
	}
	const recoveries = 12
	every := states/recoveries + 1
	one := all[i/every%len(all)]
	one.look = i%every != 0
	return []trial{one}
}

// forQEMU picks states for QEMU to look at: all with different images in a long
// test, else some of them.
func (r *recorded) forQEMU(states []cutState) map[int]bool {
	seen := map[[sha256.Size]byte]bool{}
	var different []int
	for i, c := range states {
		if !seen[c.images] {
			seen[c.images] = true
			different = append(different, i)
		}
	}
	random := rand.New(rand.NewPCG(3, 3))
	random.Shuffle(len(different), func(i, j int) { different[i], different[j] = different[j], different[i] })
	picked := map[int]bool{len(states) - 1: true}
	for _, i := range different[:min(len(different), testtool.Count(4, len(different)))] {
		picked[i] = true
	}
	return picked
}

// around lists the effects next to a cut.
func (r *recorded) around(c sim.PowerCut) string {
	var b strings.Builder
	effects := r.log.Effects()
	for i := max(c.Done-12, 0); i < min(c.Done+4, len(effects)); i++ {
		if i == c.Done {
			b.WriteString("      ---- power cut\n")
		}
		fmt.Fprintf(&b, "%5d %v\n", i, effects[i])
	}
	return b.String()
}
