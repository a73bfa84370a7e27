package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

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

// guardCommand is the program as its own guard; see package guard.
func (p *program) guardCommand() *cobra.Command {
	return &cobra.Command{
		Use: "guard", Hidden: true, Args: arguments(cobra.NoArgs),
		Short: "Undo what a backup leaves in a machine when it dies (started by backups)",
		RunE: func(c *cobra.Command, _ []string) error {
			return guard.Serve(c.Context(), p.stdin, p.stdout, guard.Hooks{
				Cleanup: cleanUp,
				Tell:    func(line string) { p.note("guard: %s", line) },
			})
		},
	}
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

// thawCommand undoes what nobody is left to undo.
func (p *program) thawCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "thaw",
		Short: "Thaw or resume machines that a killed backup left frozen or suspended",
		Long: `Thaw or resume machines that a backup left frozen or suspended, and take down what it left in their QEMU. A backup that dies is
followed by a guard process that does so within moments; this is for the death of both. Every backup does it, too, when it starts.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.thaw(c.Context(), true) },
	}
}

// thaw undoes what dead guards have left, and says so.
func (p *program) thaw(ctx context.Context, asked bool) error {
	dir, err := p.guardDir()
	if err != nil {
		return err
	}
	undone, err := guard.Recover(ctx, dir, cleanUp)
	for _, r := range undone {
		if r.Name == guard.NameCleanup {
			p.warn("took down what a backup that died had left in a machine; it began at %s", r.Since.Format(time.RFC3339))
			continue
		}
		p.warn("undid %s of %s, in force since %s", r.Name, r.ID, r.Since.Format(time.RFC3339))
	}
	if asked && len(undone) == 0 && err == nil {
		p.say("nothing is frozen or suspended, or left in a machine")
	}
	return err
}

func (p *program) guardDir() (string, error) {
	dir, err := state.Dir(p.stateDir, state.HostEnvironment())
	return filepath.Join(dir, guardFolder), err
}

// guardQEMU starts the guard of a backup over QMP.
func (p *program) guardQEMU(ctx context.Context, f machineFlags) (*guard.Guard, error) {
	monitor, err := filepath.Abs(f.qmp)
	if err != nil {
		return nil, err
	}
	actions := map[string]guard.Action{}
	if f.agent != "" {
		agent, err := filepath.Abs(f.agent)
		if err != nil {
			return nil, err
		}
		actions[freezeAction] = guard.Action{Agent: agent}
	}
	return p.startGuard(ctx, rand.Text(), actions, cleanup{Monitor: monitor})
}

// guardDomain is a virt.StartGuard.
func (p *program) guardDomain(ctx context.Context, id string, actions map[string]guard.Action, domain json.RawMessage) (*guard.Guard, error) {
	return p.startGuard(ctx, id, actions, cleanup{Domain: domain})
}

func (p *program) startGuard(ctx context.Context, id string, actions map[string]guard.Action, c cleanup) (*guard.Guard, error) {
	// The state directory above the guard's folder is made first: it has its own rights.
	if _, err := p.openState(false); err != nil {
		return nil, err
	}
	dir, err := p.guardDir()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	left, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	argv := []string{self, "guard"}
	if p.quiet {
		argv = append(argv, "--quiet")
	}
	if p.json {
		argv = append(argv, "--json")
	}
	return guard.Start(ctx, argv, guard.Spec{Folder: dir, ID: id, Cleanup: left, Actions: actions})
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
