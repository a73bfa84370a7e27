package fleet

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
)

// Hooks are programs that are run before and after a machine's backup. Each is a path;
// a file name alone is not looked for.
type Hooks struct {
	Before, After []string
	// Timeout bounds each; 0: HookTimeout.
	Timeout time.Duration
}

// HookTimeout bounds a hook that has no other bound.
const HookTimeout = time.Minute

const (
	hookOutputBytes = 2 << 10         // of what a failed hook printed go into its error
	hookGrace       = 5 * time.Second // between SIGTERM and SIGKILL
)

// ErrHook: a hook failed or took too long.
var ErrHook = errors.New("hook failed")

// run runs one hook with the environment env besides the program's own. A hook that
// takes too long is ended with all that it started.
func (h Hooks) run(ctx context.Context, hook string, env []string) error {
	timeout := h.Timeout
	if timeout <= 0 {
		timeout = HookTimeout
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(bounded, hook)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = hookGrace
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if cmd.Process != nil && bounded.Err() != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded.Err() != nil:
		return fmt.Errorf("%w: %s did not end within %s%s", ErrHook, hook, timeout, out.said())
	case err != nil:
		return fmt.Errorf("%w: %s: %w%s", ErrHook, hook, err, out.said())
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - hookOutputBytes; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) said() string {
	text := strings.ToValidUTF8(string(bytes.TrimSpace(t.kept)), "?")
	if text == "" {
		return ""
	}
	return ": " + strings.ReplaceAll(text, "\n", "; ")
}
