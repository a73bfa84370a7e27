package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// program is the binary under test, built once.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "qbackup-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(dir, "qbackup")
	build := exec.Command("go", "build", "-o", program, "../../cmd/qbackup")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build qbackup: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// world is one host: a folder for images, a repository, local state.
type world struct {
	t    *testing.T
	dir  string
	repo string
	env  []string
}

// newWorld has an initialised repository in a folder.
func newWorld(t *testing.T) *world {
	t.Helper()
	testtool.Need(t, "qemu-img")
	testtool.Need(t, "qemu-io")
	w := &world{t: t, dir: t.TempDir()}
	w.repo = filepath.Join(w.dir, "repository")
	w.env = append(os.Environ(),
		"QBACKUP_REPOSITORY="+w.repo,
		"QBACKUP_STATE_DIR="+filepath.Join(w.dir, "state"),
		"CACHE_DIRECTORY="+filepath.Join(w.dir, "cache"),
	)
	w.ok("init")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// result is what one invocation gave.
type result struct {
	code           int
	stdout, stderr string
}

func (w *world) command(args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Env = w.env
	c.Dir = w.dir
	return c
}

// run invokes qbackup.
func (w *world) run(args ...string) result {
	w.t.Helper()
	return finish(w.t, w.command(args...))
}

func finish(t *testing.T, c *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", c.Args, err)
	}
	return result{c.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// ok invokes qbackup and demands success.
func (w *world) ok(args ...string) string {
	w.t.Helper()
	r := w.run(args...)
	if r.code != 0 {
		w.t.Fatalf("qbackup %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// fails invokes qbackup and demands an exit code and a message that has all of words.
func (w *world) fails(code int, words []string, args ...string) result {
	w.t.Helper()
	r := w.run(args...)
	if r.code != code {
		w.t.Errorf("qbackup %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.stdout, r.stderr)
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			w.t.Errorf("qbackup %s: the message lacks %q:\n%s", strings.Join(args, " "), word, r.stderr)
		}
	}
	return r
}

// summary is the last line of backup --json.
type summary struct {
	MessageType string  `json:"message_type"`
	Machine     string  `json:"machine"`
	Point       string  `json:"point"`
	Disks       []disk  `json:"disks"`
	Duration    float64 `json:"duration_seconds"`
}

type disk struct {
	Name    string `json:"name"`
	Mode    string `json:"mode"`
	Reason  string `json:"reason"`
	Size    int64  `json:"size_bytes"`
	Dirty   int64  `json:"dirty_bytes"`
	Read    int64  `json:"read_bytes"`
	Zero    int64  `json:"zero_bytes"`
	Skipped int64  `json:"skipped_bytes"`
	Stored  int64  `json:"stored_bytes"`
}

// backup runs backup --json and returns its summary.
func (w *world) backup(args ...string) summary {
	w.t.Helper()
	out := strings.TrimSpace(w.ok(append([]string{"backup", "--json"}, args...)...))
	lines := strings.Split(out, "\n")
	return parseSummary(w.t, lines[len(lines)-1])
}

func parseSummary(t *testing.T, line string) summary {
	t.Helper()
	var s summary
	if err := json.Unmarshal([]byte(line), &s); err != nil || s.MessageType != "summary" {
		t.Fatalf("not a summary (%v): %q", err, line)
	}
	return s
}

// sameContent demands that two images hold the same disk.
func (w *world) sameContent(format1, path1, format2, path2, what string) {
	w.t.Helper()
	if out, code := testtool.Try(w.t, "qemu-img", "compare", "-f", format1, "-F", format2, path1, path2); code != 0 {
		w.t.Fatalf("%s: %s and %s differ: %s", what, path1, path2, out)
	}
}

// clean demands that qemu-img check finds nothing at all.
func (w *world) clean(image string) {
	w.t.Helper()
	if out, code := testtool.Try(w.t, "qemu-img", "check", image); code != 0 {
		w.t.Fatalf("qemu-img check %s: exit %d\n%s", image, code, out)
	}
}
