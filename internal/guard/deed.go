package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/qbackup/qbackup/internal/qmp"
)

// deed is an action at work.
type deed interface {
	// do returns a count, 0 where nothing is counted. After a *refusedError nothing
	// is held; after another error that is unknown.
	do(ctx context.Context) (int, error)
	// undo makes one try of limited length. It may be called again, and also when
	// nothing was done.
	undo(ctx context.Context) (int, error)
	close()
}

// refusedError is an error of do after which nothing is held, or hardly: perhaps says
// that one try to undo is due, whose failure is no news.
type refusedError struct {
	err     error
	perhaps bool
}

func (r *refusedError) Error() string { return r.err.Error() }
func (r *refusedError) Unwrap() error { return r.err }

func (a Action) deed() deed {
	if a.Exec != nil {
		return &execDeed{*a.Exec}
	}
	return &agentDeed{path: a.Agent}
}

const (
	// agentTry is how long one try to thaw may last. Thawing takes milliseconds.
	agentTry = 5 * time.Second
	// execTry is the same for programs: libvirt itself waits 30 s for its turn.
	execTry = 45 * time.Second
	// execEnd is how long a program that was told to end has for it.
	execEnd = time.Second
	// outputKept bounds what is kept of a program's output.
	outputKept = 4 << 10
)

// agentDeed freezes and thaws. The connection stays between the two: a thaw that goes
// the way of the freeze cannot overtake it.
type agentDeed struct {
	path  string
	agent *qmp.Agent // nil: not connected
}

func (d *agentDeed) do(ctx context.Context) (int, error) {
	if err := d.connect(ctx); err != nil {
		return 0, &refusedError{err: err}
	}
	n, err := d.agent.Freeze(ctx)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return 0, &refusedError{err: err}
	}
	return n, err
}

func (d *agentDeed) undo(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTry)
	defer cancel()
	if err := d.connect(ctx); errors.Is(err, qmp.ErrNobody) {
		return 0, nil // the machine has ended, and so has the freeze
	} else if err != nil {
		return 0, err
	}
	n, err := d.agent.Thaw(ctx)
	if errors.Is(err, qmp.ErrLost) {
		d.close()
	}
	return n, err
}

func (d *agentDeed) connect(ctx context.Context) (err error) {
	if d.agent == nil {
		d.agent, err = qmp.DialAgent(ctx, d.path, qmp.Options{})
	}
	return err
}

func (d *agentDeed) close() {
	if d.agent != nil {
		_ = d.agent.Close()
		d.agent = nil
	}
}

// execDeed runs programs.
type execDeed struct{ Exec }

func (d *execDeed) do(ctx context.Context) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, &refusedError{err: err}
	}
	// Without us nobody would undo what it does after our death: it ends with us.
	out, err := run(ctx, d.Do, syscall.SIGKILL)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return d.count(out), nil
	case ctx.Err() == nil && errors.As(err, &exit) && exit.Exited():
		return 0, &refusedError{err, true} // it said no, but may have done half of it
	case ctx.Err() == nil && exit == nil:
		return 0, &refusedError{err: err} // it could not be started
	}
	return 0, err
}

func (d *execDeed) undo(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, execTry)
	defer cancel()
	out, err := run(ctx, d.Undo, 0)
	if err != nil {
		return 0, err
	}
	return d.count(out), nil
}

func (d *execDeed) close() {}

var numberPattern = regexp.MustCompile(`[0-9]+`)

func (d *execDeed) count(out string) int {
	if !d.Counts {
		return 0
	}
	n, err := strconv.Atoi(numberPattern.FindString(out))
	if err != nil {
		return 0
	}
	return n
}

// run runs a program to its end, or tells it to end when ctx does. withUs is the signal
// that it gets when this process dies, 0 for none.
func run(ctx context.Context, argv []string, withUs syscall.Signal) (string, error) {
	// The signal comes when the thread ends that started the program.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: withUs}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = execEnd
	var out, complaint head
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	text := strings.Join(strings.Fields(complaint.String()), " ")
	if text != "" {
		text = ": " + text
	}
	return "", fmt.Errorf("%s: %w%s", strings.Join(argv, " "), err, text)
}

// head keeps the beginning of what is written to it.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), outputKept-len(h.b))]...)
	return len(p), nil
}

func (h *head) String() string { return string(h.b) }
