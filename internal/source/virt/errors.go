package virt

import (
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/source"
)

var (
	// ErrDomain is reported for a domain that is not in a state in which it can be
	// backed up, or is not there at all.
	ErrDomain = errors.New("the domain cannot be backed up")
	// ErrBusy is reported when libvirt is at work on the domain for somebody else.
	ErrBusy = errors.New("another job of libvirt is active")
	// ErrTooOld is reported for a libvirt or QEMU that cannot do backups.
	ErrTooOld = errors.New("libvirt or QEMU cannot make backups of a running machine")
	// ErrNotFrozen is reported when the guest's file systems must be frozen and were
	// not.
	ErrNotFrozen = errors.New("the guest's file systems were not frozen")
	// ErrDisk is reported for a disk that cannot be backed up through libvirt.
	ErrDisk = errors.New("the disk cannot be backed up")
)

// unusable makes an error about the domain or one of its disks.
func unusable(what string, err error, hint string) error {
	return &source.UsableError{Path: what, Err: err, Hint: hint}
}

// explain puts what a refusal of libvirt means, and what would help, to its words.
// what is the domain.
func explain(what string, err error) error {
	var refused *commandError
	if !errors.As(err, &refused) || errors.Is(err, source.ErrUnusable) {
		return err
	}
	switch {
	case says(err, saysNoDaemon):
		return unusable(what, fmt.Errorf("%w: %w", source.ErrMonitor, err), "start libvirtd, or virtqemud, and run as a user who may use it")
	case says(err, saysNoDomain, saysNoDomain2):
		return unusable(what, fmt.Errorf("%w: it is not defined here: %w", ErrDomain, err), "`virsh list --all` shows the names")
	case says(err, saysNoCommand):
		return unusable(what, fmt.Errorf("%w: %w", ErrTooOld, err), hintVersions)
	case says(err, saysLocked, saysOtherJob, saysBlockJob, saysServing):
		return unusable(what, fmt.Errorf("%w: %w", ErrBusy, err), "wait until it has ended; `virsh domjobinfo` and `virsh blockjob` show it")
	case says(err, saysNotRunning):
		return unusable(what, fmt.Errorf("%w: %w", source.ErrGone, err), "run the backup again")
	case says(err, saysNoSpace):
		return unusable(what, fmt.Errorf("%w: %w", source.ErrScratch, err), "free some space, or name a larger place with --scratch-dir")
	case says(err, saysUnsupported):
		return unusable(what, fmt.Errorf("%w: %w", ErrTooOld, err), hintVersions)
	case says(err, saysDenied):
		return unusable(what, err, "QEMU runs as a user of its own: it must be able to reach the folders for scratch files and sockets, also by SELinux or AppArmor")
	}
	return unusable(what, err, "")
}

// hintVersions says what is needed, and what works without.
const hintVersions = "libvirt 7.6 with QEMU 6.1, or newer, is needed for a machine that runs; shut it down, then its files are backed up"
