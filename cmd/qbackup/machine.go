package main

import (
	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/target"
)

// machineFlags are what a command line can say of a machine, but for its images.
type machineFlags struct {
	spec   target.Spec
	freeze string
}

func (f *machineFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.BoolVarP(&f.spec.DryRun, "dry-run", "n", false, "say what would be read, and write nothing anywhere")
	flags.StringVar(&f.spec.Name, "machine", "", "name of the machine; default: the file name of a single image")
	flags.StringVar(&f.spec.Monitor, "qmp", "", "QMP socket of the machine's QEMU: it is backed up while it runs")
	flags.StringVar(&f.spec.Domain, "libvirt", "", "name or UUID of a libvirt domain: it is backed up whether it runs or is off")
	flags.StringVar(&f.spec.URI, "libvirt-uri", "qemu:///system", "which libvirt of this host has the domain")
	flags.BoolVar(&f.spec.Hold, "hold", false, "keep the machine from starting for the whole run, not only its last moment")
	flags.StringArrayVar(&f.spec.AllowDirs, "allow-dir", nil, "folder in which an image's backing and data files may lie (repeatable)")
	flags.StringVar(&f.spec.Agent, "guest-agent", "", "socket of the guest agent of a running machine, to freeze its file systems for the point in time")
	flags.StringVar(&f.freeze, "freeze", string(target.FreezeTry), "freeze the guest's file systems for the point in time: off, try, or require (no point without)")
	_ = c.RegisterFlagCompletionFunc("freeze", cobra.FixedCompletions(
		[]cobra.Completion{string(target.FreezeOff), string(target.FreezeTry), string(target.FreezeRequire)}, cobra.ShellCompDirectiveNoFileComp))
	flags.DurationVar(&f.spec.FreezeBudget, "freeze-budget", guard.BudgetDefault, "how long they may be frozen; then they are thawed whatever the backup does")
	flags.StringVar(&f.spec.ScratchDir, "scratch-dir", "", "where QEMU keeps what a running guest overwrites during the backup (default: scratch in the state directory)")
}

// named is the machine that the flags and the images of a command line name.
func (f *machineFlags) named(images []string) target.Spec {
	s := f.spec
	s.Images, s.Freeze = images, target.Freeze(f.freeze)
	return s
}

// host is this program, as machines need it.
func (p *program) host() *target.Host {
	args := []string{"guard"}
	if p.quiet {
		args = append(args, "--quiet")
	}
	if p.json {
		args = append(args, "--json")
	}
	return &target.Host{StateDir: p.stateDir, GuardArgs: args, Note: func(text string) { p.note("%s", text) }}
}
