package target

import (
	"context"
	"path/filepath"

	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/live"
	"github.com/qbackup/qbackup/internal/source/offline"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/state"
)

// Host is this program on this host, as far as machines need it.
type Host struct {
	// StateDir is what --state-dir says; see state.Dir.
	StateDir string
	// GuardArgs follow the program's name where it is started as a guard.
	GuardArgs []string
	// Note is told what is no error and yet worth a line.
	Note func(string)
}

// Target is a machine that can be backed up.
type Target struct {
	Name ident.MachineName
	// Open makes its source. The family is known only after the repository was asked.
	Open func(ident.FamilyID) source.Machine

	// guard undoes what would hurt the machine if we died; nil: nothing can.
	guard *guard.Guard
	// left tells whether something of ours may still be in the machine; nil: no.
	left func() bool
}

// Close ends what was started for the machine.
func (t *Target) Close() error {
	if t.guard == nil {
		return nil
	}
	if t.left != nil && t.left() {
		t.guard.Leave()
		return nil
	}
	return t.guard.Done()
}

// Choose finds out what a Spec means.
func (h *Host) Choose(ctx context.Context, s Spec) (*Target, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.Domain != "" {
		return h.chooseDomain(s)
	}
	images, err := parseImages(s.Images)
	if err != nil {
		return nil, err
	}
	t := &Target{}
	if t.Name, err = machineName(s.Name, images); err != nil {
		return nil, err
	}
	if s.Monitor != "" && (len(images) == 0 || live.Answers(s.Monitor)) {
		return t, h.chooseRunning(ctx, t, s, images)
	}
	t.Open = func(family ident.FamilyID) source.Machine {
		return offline.New(images, offline.Options{Family: family, AllowDirs: s.AllowDirs, Hold: s.Hold})
	}
	return t, nil
}

// chooseRunning is Choose for a machine that runs.
func (h *Host) chooseRunning(ctx context.Context, t *Target, s Spec, images []offline.Image) error {
	o := live.Options{Monitor: s.Monitor, Note: h.Note}
	for _, image := range images {
		o.Disks = append(o.Disks, live.Disk{Name: image.Name, Path: image.Path})
	}
	var err error
	if o.RuntimeDir, err = state.RuntimeDir(h.StateDir, state.HostEnvironment()); err != nil {
		return err
	}
	if o.ScratchDir, err = h.scratchDir(s); err != nil {
		return err
	}
	if !s.DryRun { // else there is nothing to undo
		if t.guard, err = h.guardQEMU(ctx, s); err != nil {
			return err
		}
	}
	if t.guard != nil && s.Freeze != FreezeOff && s.Agent != "" {
		o.Freezer, o.FreezeRequired = &freezer{t.guard, s.FreezeBudget}, s.Freeze == FreezeRequire
	}
	t.Open = func(family ident.FamilyID) source.Machine {
		o.Family = family
		machine := live.New(o)
		t.left = machine.Left
		return machine
	}
	return nil
}

// chooseDomain is Choose for a domain of libvirt.
func (h *Host) chooseDomain(s Spec) (*Target, error) {
	name, err := s.MachineName()
	if err != nil {
		return nil, err
	}
	t := &Target{Name: name}
	o := virt.Options{
		Domain: s.Domain, URI: s.URI, Note: h.Note,
		Freeze: s.Freeze != FreezeOff, FreezeRequired: s.Freeze == FreezeRequire, Budget: s.FreezeBudget,
		StartGuard: h.guardDomain, Offline: offline.Options{AllowDirs: s.AllowDirs, Hold: s.Hold},
	}
	if o.ScratchDir, err = h.scratchDir(s); err != nil {
		return nil, err
	}
	t.Open = func(family ident.FamilyID) source.Machine {
		o.Family = family
		return virt.New(o)
	}
	return t, nil
}

// scratchDir is where QEMU keeps what a running guest overwrites.
func (h *Host) scratchDir(s Spec) (string, error) {
	if s.ScratchDir != "" {
		return filepath.Abs(s.ScratchDir)
	}
	return state.ScratchDir(h.StateDir, state.HostEnvironment())
}
