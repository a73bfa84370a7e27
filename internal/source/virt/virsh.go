package virt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
)

// virsh runs libvirt's client, one process for each command.
type virsh struct {
	program, uri string
	lock         *state.NameLock // of the domain, held by each command; nil: not locked
}

// do runs a command and gives what it prints. files are given to it under the names
// that fileArg makes of their numbers.
func (v virsh) do(ctx context.Context, args []string, files ...string) (string, error) {
	out, _, err := v.run(ctx, args, files...)
	return out, err
}

// run is do, and gives what the command complains about although it succeeds.
func (v virsh) run(ctx context.Context, args []string, files ...string) (out, complaints string, err error) {
	bounded, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c := exec.CommandContext(bounded, v.program, append([]string{"--quiet", "--connect", v.uri}, args...)...)
	c.Env = append(os.Environ(), "LC_ALL=C")
	// An interrupt at the terminal is ours to deal with: a command that dies half way
	// leaves libvirt at work, and nobody who knows how it ended.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = time.Second
	var stdout, stderr limited
	c.Stdout, c.Stderr = &stdout, &stderr
	for _, text := range files {
		f, err := memoryFile(text)
		if err != nil {
			return "", "", err
		}
		defer f.Close()
		c.ExtraFiles = append(c.ExtraFiles, f)
	}
	if v.lock != nil {
		c.ExtraFiles = append(c.ExtraFiles, v.lock.File())
	}
	err = c.Run()
	switch {
	case ctx.Err() != nil:
		return "", "", ctx.Err()
	case bounded.Err() != nil:
		return "", "", &commandError{command: args[0], text: fmt.Sprintf("no answer within %s", commandTime)}
	case errors.Is(err, exec.ErrNotFound):
		return "", "", &source.UsableError{Path: v.program, Err: err, Hint: "install libvirt's client (package libvirt-clients or libvirt-client)"}
	case err != nil:
		return "", "", &commandError{command: args[0], text: complaint(stderr.String(), err)}
	case stdout.cut:
		return "", "", &commandError{command: args[0], text: fmt.Sprintf("more than %d bytes of answer", replyBytes)}
	}
	return stdout.String(), stderr.String(), nil
}

// all runs several commands that only ask, and gives what each prints. One process
// does them all; when it has anything to complain about, each is run for itself, so that
// it is known which one failed.
func (v virsh) all(ctx context.Context, commands ...[]string) ([]string, error) {
	const mark = "qbackup: next answer"
	var script strings.Builder
	plain := true
	for _, c := range commands {
		for _, arg := range c {
			plain = plain && !strings.ContainsRune(arg, '\'')
			script.WriteString("'" + arg + "' ")
		}
		script.WriteString("; echo '" + mark + "'; ")
	}
	if plain {
		out, complaints, err := v.run(ctx, []string{script.String()})
		answers := strings.Split(out, mark)
		if err == nil && complaints == "" && len(answers) == len(commands)+1 {
			return answers[:len(commands)], nil
		}
	}
	answers := make([]string, len(commands))
	for i, c := range commands {
		var err error
		if answers[i], err = v.do(ctx, c); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// fileArg is the name of the n-th file of a command.
func fileArg(n int) string { return fmt.Sprintf("/proc/self/fd/%d", 3+n) }

// memoryFile makes a file that has no name anywhere.
func memoryFile(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("virsh", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file for virsh: %w", err)
	}
	f := os.NewFile(uintptr(fd), "virsh")
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write a file for virsh: %w", err), f.Close())
	}
	return f, nil
}

// limited keeps the start of what is written to it.
type limited struct {
	kept bytes.Buffer
	cut  bool
}

func (l *limited) String() string { return l.kept.String() }

// Write never fails, so that the program goes on to its end.
func (l *limited) Write(p []byte) (int, error) {
	if room := replyBytes - l.kept.Len(); len(p) > room {
		l.cut = true
		l.kept.Write(p[:room])
		return len(p), nil
	}
	return l.kept.Write(p)
}

// complaint makes one line of what virsh says about a failure.
func complaint(stderr string, err error) string {
	var parts []string
	for line := range strings.Lines(stderr) {
		if line = strings.TrimPrefix(strings.TrimSpace(line), "error: "); line != "" {
			parts = append(parts, line)
		}
	}
	if len(parts) == 0 {
		return err.Error()
	}
	return strings.Join(parts, ": ")
}

// commandError is a command that virsh or libvirt refuses.
type commandError struct {
	command, text string
}

// Error gives the command and libvirt's words.
func (e *commandError) Error() string { return fmt.Sprintf("virsh %s: %s", e.command, e.text) }

// says tells whether an error is a refusal with one of these texts in it. libvirt
// gives numbers to its errors, but virsh does not show them; the texts have been the
// same for many years.
func says(err error, texts ...string) bool {
	var refused *commandError
	if !errors.As(err, &refused) {
		return false
	}
	for _, text := range texts {
		if strings.Contains(refused.text, text) {
			return true
		}
	}
	return false
}

// What libvirt says in its errors, as far as something follows from it.
const (
	saysNoDaemon    = "failed to connect to the hypervisor"
	saysNoDomain    = "failed to get domain"
	saysNoDomain2   = "Domain not found"
	saysNoCommand   = "unknown command"
	saysUnsupported = "not supported"
	saysNotRunning  = "domain is not running"
	saysLocked      = "cannot acquire state change lock"
	saysNoJob       = "no job is active"
	showsBlockJob   = "type=" // in the answer for a disk that has one
	saysNoBackup    = "no domain backup job present"
	saysOtherJob    = "another backup job is already running"
	saysBlockJob    = "already in active block job"
	saysServing     = "NBD server already running"
	saysNoSpace     = "No space left on device"
	saysDenied      = "Permission denied"
)
