package livetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/store/dir"
)

// program is the binary under test, built once.
var program string

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "qbackup-live-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(folder, "qbackup")
	build := exec.Command("go", "build", "-o", program, "../../cmd/qbackup")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build qbackup: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.RemoveAll(folder)
	os.Exit(code)
}

// host is one host: a folder for images and sockets, a repository, local state.
type host struct {
	t    testing.TB
	dir  string
	env  []string
	repo *repo.Repository
}

// newHost has an initialised repository. Its folder has a short name, because sockets
// are in it.
func newHost(t testing.TB) *host {
	t.Helper()
	folder, err := os.MkdirTemp("", "qb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	h := &host{t: t, dir: folder}
	h.env = append(os.Environ(), "QBACKUP_REPOSITORY="+h.path("repository"), "QBACKUP_STATE_DIR="+h.path("state"), "CACHE_DIRECTORY="+h.path("cache"))
	h.ok("init")
	s, err := dir.Open(h.path("repository"), dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if h.repo, err = repo.Open(context.Background(), s, repo.Options{}); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) command(args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Env, c.Dir = h.env, h.dir
	return c
}

// run invokes qbackup, and gives what it printed and its exit code.
func (h *host) run(args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	c := h.command(args...)
	var out, problems bytes.Buffer
	c.Stdout, c.Stderr = &out, &problems
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("%v: %v", args, err)
	}
	return out.String(), problems.String(), c.ProcessState.ExitCode()
}

// ok invokes qbackup and demands success.
func (h *host) ok(args ...string) string {
	h.t.Helper()
	stdout, stderr, code := h.run(args...)
	if code != 0 {
		h.t.Fatalf("qbackup %s: exit %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// backup makes a point and gives its summary.
func (h *host) backup(args ...string) agent.Summary {
	h.t.Helper()
	return h.summary(h.ok(append([]string{"backup", "--json"}, args...)...))
}

func (h *host) summary(stdout string) agent.Summary {
	h.t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var s agent.Summary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil || s.MessageType != "summary" {
		h.t.Fatalf("not a summary (%v): %q", err, stdout)
	}
	return s
}

// modes tells how the disks of a run were backed up, in the order of their names.
func modes(s agent.Summary) string {
	var list []string
	for _, d := range s.Disks {
		text := d.Mode
		if d.Reason != "" {
			text += " (" + string(d.Reason) + ")"
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ", ")
}

// content reads a disk of a point.
func (h *host) content(machine string, point ident.RunID, disk string) []byte {
	h.t.Helper()
	ctx := context.Background()
	p, err := h.repo.OpenPoint(ctx, ident.MachineName(machine), point)
	if err != nil {
		h.t.Fatal(err)
	}
	d, err := p.Disk(disk)
	if err != nil {
		h.t.Fatal(err)
	}
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(b, 0); n != len(b) {
		h.t.Fatalf("read disk %s of point %s: %d bytes, %v", disk, point, n, err)
	}
	return b
}

// mode is how a disk came into a point.
func (h *host) mode(machine string, point ident.RunID, disk string) string {
	h.t.Helper()
	p, err := h.repo.OpenPoint(context.Background(), ident.MachineName(machine), point)
	if err != nil {
		h.t.Fatal(err)
	}
	return p.Record().Disk(disk).Mode
}

// points are the ids of a machine's points, oldest first.
func (h *host) points(machine string) []ident.RunID {
	h.t.Helper()
	var list []struct {
		Point ident.RunID `json:"point"`
	}
	if err := json.Unmarshal([]byte(h.ok("points", "--json", "--machine", machine)), &list); err != nil {
		h.t.Fatal(err)
	}
	var ids []ident.RunID
	for _, p := range list {
		ids = append(ids, p.Point)
	}
	return ids
}
