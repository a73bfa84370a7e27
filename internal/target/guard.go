package target

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/live"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/state"
)

// guardFolder is where guards note what is to be undone, in the state directory.
const guardFolder = "guards"

// freezeAction is what a guard calls the freeze of a guest's file systems.
const freezeAction = "freeze"

// cleanup is what a guard is left by a backup that dies. One of the fields is set.
type cleanup struct {
	Monitor string          `json:"monitor,omitempty"` // QMP socket of a QEMU in which something of ours may be
	Domain  json.RawMessage `json:"domain,omitempty"`  // of virt.Cleanup
}

// ServeGuard makes this process the guard of another; see package guard.
func (h *Host) ServeGuard(ctx context.Context, in io.Reader, out io.Writer) error {
	return guard.Serve(ctx, in, out, guard.Hooks{Cleanup: cleanUp, Tell: func(line string) { h.Note("guard: " + line) }})
}

func cleanUp(ctx context.Context, raw json.RawMessage) error {
	var c cleanup
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	if c.Domain != nil {
		return virt.Cleanup(ctx, c.Domain)
	}
	return live.Recover(ctx, c.Monitor)
}

// Thaw undoes what dead guards have left, and says what it undid.
func (h *Host) Thaw(ctx context.Context) ([]string, error) {
	dir, err := h.guardDir()
	if err != nil {
		return nil, err
	}
	undone, err := guard.Recover(ctx, dir, cleanUp)
	var lines []string
	for _, r := range undone {
		line := fmt.Sprintf("undid %s of %s, in force since %s", r.Name, r.ID, r.Since.Format(time.RFC3339))
		if r.Name == guard.NameCleanup {
			line = fmt.Sprintf("took down what a backup that died had left in a machine; it began at %s", r.Since.Format(time.RFC3339))
		}
		lines = append(lines, line)
	}
	return lines, err
}

func (h *Host) guardDir() (string, error) {
	dir, err := state.Dir(h.StateDir, state.HostEnvironment())
	return filepath.Join(dir, guardFolder), err
}

// guardQEMU starts the guard of a backup over QMP.
func (h *Host) guardQEMU(ctx context.Context, s Spec) (*guard.Guard, error) {
	monitor, err := filepath.Abs(s.Monitor)
	if err != nil {
		return nil, err
	}
	actions := map[string]guard.Action{}
	if s.Agent != "" {
		agent, err := filepath.Abs(s.Agent)
		if err != nil {
			return nil, err
		}
		actions[freezeAction] = guard.Action{Agent: agent}
	}
	return h.startGuard(ctx, rand.Text(), actions, cleanup{Monitor: monitor})
}

// guardDomain is a virt.StartGuard.
func (h *Host) guardDomain(ctx context.Context, id string, actions map[string]guard.Action, domain json.RawMessage) (*guard.Guard, error) {
	return h.startGuard(ctx, id, actions, cleanup{Domain: domain})
}

func (h *Host) startGuard(ctx context.Context, id string, actions map[string]guard.Action, c cleanup) (*guard.Guard, error) {
	dir, err := state.Dir(h.StateDir, state.HostEnvironment())
	if err != nil {
		return nil, err
	}
	// The state directory above the guard's folder is made first: it has its own rights.
	if _, err := state.Open(dir, state.Options{}); err != nil {
		return nil, err
	}
	left, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return guard.Start(ctx, append([]string{guard.OwnProgram}, h.GuardArgs...),
		guard.Spec{Folder: filepath.Join(dir, guardFolder), ID: id, Cleanup: left, Actions: actions})
}

// freezer freezes through a guard.
type freezer struct {
	guard  *guard.Guard
	budget time.Duration
}

// Freeze freezes the guest's file systems.
func (f *freezer) Freeze(ctx context.Context) error {
	_, err := f.guard.Hold(ctx, freezeAction, f.budget)
	return err
}

// Thaw thaws them.
func (f *freezer) Thaw(ctx context.Context) (source.Frozen, error) {
	r, err := f.guard.Release(ctx, freezeAction)
	return source.Frozen{Seconds: r.For.Seconds(), Broken: r.Broken()}, err
}
