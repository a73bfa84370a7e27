package agent

import (
	"errors"
	"fmt"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
)

var (
	// ErrJob: the job itself cannot be run as given.
	ErrJob = errors.New("job is incomplete")
	// ErrSomeFailed: a point was made, and at least one disk is missing in it.
	ErrSomeFailed = errors.New("some disks are missing in the point")
	// ErrRunning: another run of this machine may be alive elsewhere.
	ErrRunning = errors.New("another run of this machine may be alive")
	// ErrOtherMachine: the name belongs to a machine that these images are not
	// known to be.
	ErrOtherMachine = errors.New("the machine name is taken")
	// ErrGivingUp: the run started over too often.
	ErrGivingUp = errors.New("the run keeps failing")
)

// RunningError says which run is in the way.
type RunningError struct {
	Machine ident.MachineName
	Run     ident.RunID
	Who     string
}

// Error says who, since when, and when to try again.
func (e *RunningError) Error() string {
	return fmt.Sprintf("%v: run %s of %s (%s); it counts as dead after %s without a sign of life, try again then",
		ErrRunning, e.Run, e.Machine, e.Who, silence)
}

// Is makes errors.Is(err, ErrRunning) true.
func (e *RunningError) Is(target error) bool { return target == ErrRunning }

// OtherMachineError says why a machine name was not taken over.
type OtherMachineError struct {
	Machine   ident.MachineName
	FirstHost string
	Why       string
}

// Error says what to do about it.
func (e *OtherMachineError) Error() string {
	return fmt.Sprintf("%v: %s was first backed up on %s, and nothing shows that these are its disks (%s); choose another name with --machine, "+
		"or, if they are, say --adopt", ErrOtherMachine, e.Machine, e.FirstHost, e.Why)
}

// Is makes errors.Is(err, ErrOtherMachine) true.
func (e *OtherMachineError) Is(target error) bool { return target == ErrOtherMachine }

// SomeFailedError lists the disks that a point lacks.
type SomeFailedError struct {
	Disks []DiskError
}

// DiskError is one disk and why it is missing.
type DiskError struct {
	Disk string
	Err  error
}

// Error names the disks and the reasons.
func (e *SomeFailedError) Error() string {
	parts := make([]string, 0, len(e.Disks))
	for _, d := range e.Disks {
		parts = append(parts, fmt.Sprintf("disk %s: %v", d.Disk, d.Err))
	}
	return ErrSomeFailed.Error() + ": " + strings.Join(parts, "; ")
}

// Unwrap reaches ErrSomeFailed and the reasons.
func (e *SomeFailedError) Unwrap() []error {
	all := []error{ErrSomeFailed}
	for _, d := range e.Disks {
		all = append(all, d.Err)
	}
	return all
}

// sampleError: blocks that a disk's bitmaps call clean differ from its base.
type sampleError struct {
	disk   string
	reason Reason
	text   string
}

func (e *sampleError) Error() string {
	return fmt.Sprintf("disk %s: %s: %s", e.disk, e.reason, e.text)
}
