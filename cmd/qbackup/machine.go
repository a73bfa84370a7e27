package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/live"
	"github.com/qbackup/qbackup/internal/source/offline"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/state"
)

// machineFlags say which machine is meant, and how it is read.
type machineFlags struct {
	name       string
	qmp        string
	libvirt    string
	libvirtURI string
	hold       bool
	allowDirs  []string
	scratchDir string

	dryRun bool // nothing is started or written

	freeze       string
	freezeBudget time.Duration
	agent        string
}

// What --freeze may say.
const (
	freezeOff     = "off"
	freezeTry     = "try"
	freezeRequire = "require"
)

func (f *machineFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "say what would be read, and write nothing anywhere")
	flags.StringVar(&f.name, "machine", "", "name of the machine; default: the file name of a single image")
	flags.StringVar(&f.qmp, "qmp", "", "QMP socket of the machine's QEMU: it is backed up while it runs")
	flags.StringVar(&f.libvirt, "libvirt", "", "name or UUID of a libvirt domain: it is backed up whether it runs or is off")
	flags.StringVar(&f.libvirtURI, "libvirt-uri", "qemu:///system", "which libvirt of this host has the domain")
	flags.BoolVar(&f.hold, "hold", false, "keep the machine from starting for the whole run, not only its last moment")
	flags.StringArrayVar(&f.allowDirs, "allow-dir", nil, "folder in which an image's backing and data files may lie (repeatable)")
	flags.StringVar(&f.agent, "guest-agent", "", "socket of the guest agent of a running machine, to freeze its file systems for the point in time")
	flags.StringVar(&f.freeze, "freeze", freezeTry, "freeze the guest's file systems for the point in time: off, try, or require (no point without)")
	_ = c.RegisterFlagCompletionFunc("freeze", cobra.FixedCompletions([]cobra.Completion{freezeOff, freezeTry, freezeRequire}, cobra.ShellCompDirectiveNoFileComp))
	flags.DurationVar(&f.freezeBudget, "freeze-budget", guard.BudgetDefault, "how long they may be frozen; then they are thawed whatever the backup does")
	flags.StringVar(&f.scratchDir, "scratch-dir", "", "where QEMU keeps what a running guest overwrites during the backup (default: scratch in the state directory)")
}

// chosenMachine is the machine that a command line names.
type chosenMachine struct {
	name ident.MachineName
	// open makes its source. The family is known only after the repository was asked.
	open func(ident.FamilyID) source.Machine
	// guard undoes what would hurt the machine if we died; nil: nothing can.
	guard *guard.Guard
	// left tells whether something of ours may still be in the machine; nil: no.
	left func() bool
}

// close ends what was started for the machine.
func (m *chosenMachine) close() error {
	if m.guard == nil {
		return nil
	}
	if m.left != nil && m.left() {
		m.guard.Leave()
		return nil
	}
	return m.guard.Done()
}

// chooseMachine finds out what the flags and the images on the command line mean.
func (p *program) chooseMachine(ctx context.Context, f machineFlags, args []string) (*chosenMachine, error) {
	if f.freeze != freezeOff && f.freeze != freezeTry && f.freeze != freezeRequire {
		return nil, usagef("--freeze %s: say off, try or require", f.freeze)
	}
	switch {
	case f.libvirt != "" && (f.qmp != "" || len(args) > 0):
		return nil, usagef("--libvirt knows the disks of the domain itself; name neither images nor a socket")
	case f.libvirt != "":
		return p.chooseDomain(f)
	case len(args) == 0 && f.qmp == "":
		return nil, usagef("name the machine's images, the QMP socket of its QEMU with --qmp, or its libvirt domain with --libvirt; see qbackup backup --help")
	}
	images, err := parseImages(args)
	if err != nil {
		return nil, err
	}
	m := &chosenMachine{}
	if m.name, err = machineName(f.name, images); err != nil {
		return nil, err
	}
	if f.qmp != "" && (len(images) == 0 || live.Answers(f.qmp)) {
		return m, p.chooseRunning(ctx, m, f, images)
	}
	m.open = func(family ident.FamilyID) source.Machine {
		return offline.New(images, offline.Options{Family: family, AllowDirs: f.allowDirs, Hold: f.hold})
	}
	return m, nil
}

// chooseRunning is chooseMachine for a machine that runs.
func (p *program) chooseRunning(ctx context.Context, m *chosenMachine, f machineFlags, images []offline.Image) error {
	o := live.Options{Monitor: f.qmp, Note: func(text string) { p.note("%s", text) }}
	for _, image := range images {
		o.Disks = append(o.Disks, live.Disk{Name: image.Name, Path: image.Path})
	}
	var err error
	if o.RuntimeDir, err = state.RuntimeDir(p.stateDir, state.HostEnvironment()); err != nil {
		return err
	}
	if o.ScratchDir, err = p.scratchDir(f); err != nil {
		return err
	}
	if f.freeze == freezeRequire && f.agent == "" {
		return usagef("--freeze require needs --guest-agent")
	}
	if !f.dryRun { // else there is nothing to undo
		if m.guard, err = p.guardQEMU(ctx, f); err != nil {
			return err
		}
	}
	if m.guard != nil && f.freeze != freezeOff && f.agent != "" {
		o.Freezer, o.FreezeRequired = &freezer{m.guard, f.freezeBudget}, f.freeze == freezeRequire
	}
	m.open = func(family ident.FamilyID) source.Machine {
		o.Family = family
		machine := live.New(o)
		m.left = machine.Left
		return machine
	}
	return nil
}

// chooseDomain is chooseMachine for a domain of libvirt.
func (p *program) chooseDomain(f machineFlags) (*chosenMachine, error) {
	m := &chosenMachine{}
	var err error
	if m.name, err = virt.MachineName(f.libvirt); f.name != "" {
		m.name, err = machineName(f.name, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	o := virt.Options{
		Domain: f.libvirt, URI: f.libvirtURI, Note: func(text string) { p.note("%s", text) },
		Freeze: f.freeze != freezeOff, FreezeRequired: f.freeze == freezeRequire, Budget: f.freezeBudget,
		StartGuard: p.guardDomain, Offline: offline.Options{AllowDirs: f.allowDirs, Hold: f.hold},
	}
	if o.ScratchDir, err = p.scratchDir(f); err != nil {
		return nil, err
	}
	m.open = func(family ident.FamilyID) source.Machine {
		o.Family = family
		return virt.New(o)
	}
	return m, nil
}

// scratchDir is where QEMU keeps what a running guest overwrites.
func (p *program) scratchDir(f machineFlags) (string, error) {
	if f.scratchDir != "" {
		return filepath.Abs(f.scratchDir)
	}
	return state.ScratchDir(p.stateDir, state.HostEnvironment())
}

// parseImages reads [NAME=][raw:]IMAGE. A name is asked for where two files are called the same.
func parseImages(args []string) ([]offline.Image, error) {
	var images []offline.Image
	seen := map[string]bool{}
	for _, arg := range args {
		name, path, named := strings.Cut(arg, "=")
		if !named || strings.Contains(name, "/") {
			named, path = false, arg
		}
		var image offline.Image
		image.Path, image.Raw = strings.CutPrefix(path, "raw:")
		if image.Path == "" {
			return nil, usagef("%q names no image", arg)
		}
		if image.Name = name; !named {
			image.Name = stem(image.Path)
		}
		if err := ident.CheckDiskName(image.Name); err != nil {
			return nil, usagef("%v; give the disk a name: NAME=%s", err, path)
		}
		if seen[image.Name] {
			return nil, usagef("two disks are called %s; name them: NAME=IMAGE", image.Name)
		}
		seen[image.Name] = true
		images = append(images, image)
	}
	return images, nil
}

// stem is the name of a file without folder and last ending.
func stem(path string) string {
	base := filepath.Base(path)
	return strings.TrimSuffix(base, filepath.Ext(base))
}

func machineName(flag string, images []offline.Image) (ident.MachineName, error) {
	if flag == "" {
		switch {
		case len(images) == 0:
			return "", usagef("name the machine with --machine")
		case len(images) > 1:
			return "", usagef("several images are one machine; name it with --machine")
		}
		flag = strings.ToLower(stem(images[0].Path))
	}
	name, err := ident.ParseMachineName(flag)
	if err != nil {
		return "", usagef("%v; choose another with --machine", err)
	}
	return name, nil
}
