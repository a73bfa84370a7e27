package source

import (
	"errors"
	"fmt"
	"strings"
)

// What can be the matter with a source. A kind of machine wraps them with the
// path and a hint.
var (
	// ErrUnusable is behind every error that says that a source cannot be used
	// as asked, and that something has to be done about it first.
	ErrUnusable = errors.New("source is not usable")
	// ErrHeld is reported for an image that another program, such as a running
	// machine, has open. See HeldError.
	ErrHeld = errors.New("image is in use")
	// ErrVMStarted is reported when somebody opened the image for writing while
	// it was read. Nothing of the run may be published.
	ErrVMStarted = errors.New("the machine was started")
	// ErrChanged is reported when the image is no longer what was inspected or
	// read. Nothing of the run may be published.
	ErrChanged = errors.New("the image has changed")
	// ErrReaders is the reason for a reset that did not happen because others
	// read the image. See NotReset.
	ErrReaders = errors.New("other programs are reading the image")
	// ErrMonitor is reported when a machine runs and its QEMU cannot be asked.
	ErrMonitor = errors.New("QEMU cannot be asked")
	// ErrGone is reported when the machine, or its QEMU, ended while it was read.
	// Nothing of the run may be published.
	ErrGone = errors.New("the machine has ended")
	// ErrScratch is reported when the space for what the guest overwrites during a
	// backup has run out, or fell below its floor: the backup gives up before the
	// guest is hurt (I8).
	ErrScratch = errors.New("no scratch space left for the backup")
	// ErrReadOnly is reported for an image that we may not write to, so that
	// its bits could not be reset.
	ErrReadOnly = errors.New("image is read-only for us")
)

// UsableError says which image cannot be used, why, and what would help.
type UsableError struct {
	Path string
	Err  error
	Hint string
}

// Error gives path, reason and hint.
func (e *UsableError) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("%s: %v; %s", e.Path, e.Err, e.Hint)
}

// Unwrap reaches ErrUnusable and the reason.
func (e *UsableError) Unwrap() []error { return []error{ErrUnusable, e.Err} }

// HeldError says who has an image open, as far as that can be seen.
type HeldError struct {
	Path     string
	Pids     []int    // ascending; empty when nobody can be seen
	Commands []string // beside Pids: "qemu-system-x86_64 -name web"
}

// Error names the holders, or says how to find them.
func (e *HeldError) Error() string {
	if len(e.Pids) == 0 {
		return fmt.Sprintf("%s: %v by a program that cannot be seen from here; find it with `fuser -v %s` or `lsof %s` as root, "+
			"on shared storage also on the other hosts, and stop it", e.Path, ErrHeld, shellQuote(e.Path), shellQuote(e.Path))
	}
	who := make([]string, 0, len(e.Pids))
	for i, pid := range e.Pids {
		text := fmt.Sprintf("process %d", pid)
		if i < len(e.Commands) && e.Commands[i] != "" {
			text += " (" + e.Commands[i] + ")"
		}
		who = append(who, text)
	}
	return fmt.Sprintf("%s: %v by %s; shut the machine down, or stop the program", e.Path, ErrHeld, strings.Join(who, ", "))
}

// Unwrap reaches ErrUnusable and ErrHeld.
func (e *HeldError) Unwrap() []error { return []error{ErrUnusable, ErrHeld} }

// shellQuote makes path one word of a shell command.
func shellQuote(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,@%", r)
	}
	if path != "" && strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// NotReset is what Commit returns when the point stands and the bits of some
// disks had to stay. Nothing is lost: the next run reads those bits again, and
// resets them.
type NotReset struct {
	Disks []DiskNotReset
}

// DiskNotReset is one disk whose bits stayed, and why.
type DiskNotReset struct {
	Disk string
	Err  error
}

// Error names the disks and the reasons.
func (e *NotReset) Error() string {
	parts := make([]string, 0, len(e.Disks))
	for _, d := range e.Disks {
		parts = append(parts, fmt.Sprintf("disk %s: %v", d.Disk, d.Err))
	}
	return "the restore point is complete, but bitmaps were not reset (the next run does it): " + strings.Join(parts, "; ")
}

// Unwrap reaches the reasons.
func (e *NotReset) Unwrap() []error {
	all := make([]error, 0, len(e.Disks))
	for _, d := range e.Disks {
		all = append(all, d.Err)
	}
	return all
}
