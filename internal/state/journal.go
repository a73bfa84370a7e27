package state

import (
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// Outcome of a run as far as this host knows.
type Outcome string

// The outcomes. A run with OutcomeOpen was begun and never ended: its process
// died, or it could not learn whether its record was stored.
const (
	OutcomeOpen      Outcome = ""
	OutcomeCommitted Outcome = "committed" // its point stands; the bits may not be reset
	OutcomeReset     Outcome = "reset"     // its point stands, and all bits it holds were reset
	OutcomeFailed    Outcome = "failed"
)

// Machine is the state of one machine in one repository.
type Machine struct {
	state *State
	name  ident.MachineName
	base  string
}

// Run is one attempt, as written down before its first object is stored.
type Run struct {
	Run     ident.RunID `json:"run"`
	Host    string      `json:"host"`
	BootID  string      `json:"boot_id"`
	Nonce   string      `json:"nonce"`
	Time    time.Time   `json:"time"`
	Disks   []RunDisk   `json:"disks"`
	Outcome Outcome     `json:"outcome"`
	Ended   time.Time   `json:"ended,omitzero"`
}

// RunDisk is one disk of a run.
type RunDisk struct {
	Name string      `json:"name"`
	Path string      `json:"path"`
	Mode string      `json:"mode"`
	Base ident.RunID `json:"base"` // zero: everything is read
}

// Journal is what this host remembers of a machine.
type Journal struct {
	Machine   ident.MachineName `json:"machine"`
	MachineID ident.MachineID   `json:"machine_id"`
	// Last is the newest run begun here, nil when there was none.
	Last *Run `json:"last,omitempty"`
	// Committed is the newest run known here to have made a point. A repository
	// that does not know it any more went back in time.
	Committed ident.RunID `json:"committed"`
	// Reset is the newest run known here to have reset all bits: an image that
	// continues an older point is an older copy.
	Reset ident.RunID `json:"reset"`
}

// Journal returns what is remembered, and false when nothing is. A journal that
// names another machine (a file copied by hand) counts as absent.
func (m *Machine) Journal() (Journal, bool) {
	var j Journal
	if !m.state.read(m.base+journalSuffix, &j) {
		return Journal{}, false
	}
	if j.Machine != m.name {
		m.state.report(fmt.Errorf("%s: %w, it counts as absent: it belongs to machine %q", m.base+journalSuffix, ErrDamaged, j.Machine))
		return Journal{}, false
	}
	return j, true
}

// Begin writes down a run, durably, before anything of it is stored. The caller
// holds the machine's lock and has settled the run before.
func (m *Machine) Begin(id ident.MachineID, run Run) error {
	j, _ := m.Journal()
	if j.MachineID != id {
		// Another machine of that name: what was committed is not its own.
		j = Journal{}
	}
	j.Machine, j.MachineID = m.name, id
	run.Outcome = OutcomeOpen
	j.Last = &run
	if err := m.state.write(m.base+journalSuffix, j); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// End writes down how a run ended. A run that is not the journal's last changes
// nothing but, when it was committed, the newest committed run.
func (m *Machine) End(run ident.RunID, outcome Outcome, now time.Time) error {
	j, found := m.Journal()
	if !found {
		// Lost since Begin: nothing to say about it, and nothing depends on it.
		return nil
	}
	if j.Last != nil && j.Last.Run == run {
		j.Last.Outcome, j.Last.Ended = outcome, now.UTC()
	}
	switch outcome {
	case OutcomeCommitted:
		j.Committed = run
	case OutcomeReset:
		j.Committed, j.Reset = run, run
	}
	if err := m.state.write(m.base+journalSuffix, j); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}
