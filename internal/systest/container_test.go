package systest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// container is a Debian that was booted. What is changed in it is forgotten with it.
type container struct {
	t      *testing.T
	init   string // process number of its systemd
	shared string // this host's folder that is /mnt there
}

// bootTime is far above the few seconds that it takes.
const bootTime = 2 * time.Minute

// boot boots the Debian that scripts/root makes.
func boot(t *testing.T) *container {
	t.Helper()
	nspawn := testtool.Need(t, "systemd-nspawn")
	testtool.Need(t, "nsenter")
	if os.Geteuid() != 0 {
		testtool.Lacking(t, "this user is not root, who alone can boot a container")
	}
	root, err := filepath.Abs("../../.cache/root")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/.made")); err != nil {
		testtool.Lacking(t, root+" is not there; make tools makes it")
	}
	c := &container{t: t, shared: t.TempDir()}
	log, err := os.Create(filepath.Join(c.shared, "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(nspawn, "--quiet", "--directory="+root, "--boot", "--register=no", "--keep-unit", "--volatile=overlay",
		"--bind="+c.shared+":/mnt", "--console=pipe", "--machine=qbackup-"+strconv.Itoa(os.Getpid()))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.init != "" {
			_, _ = c.try("systemctl", "poweroff", "--no-wall")
		}
		stop := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		defer stop.Stop()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(bootTime); ; time.Sleep(100 * time.Millisecond) {
		if c.init == "" {
			c.init = childOf(cmd.Process.Pid)
		}
		if c.init != "" {
			if state, _ := c.try("systemctl", "is-system-running"); strings.TrimSpace(state) == "running" {
				return c
			}
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("the container does not start:\n%s", text)
		}
	}
}

// childOf is the first child of a process.
func childOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// try runs a command in the container, and gives what it prints.
func (c *container) try(args ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--target", c.init, "--all"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// run is try for what must succeed.
func (c *container) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		journal, _ := c.try("journalctl", "--no-pager", "-n", "40", "-u", "qbackup*")
		c.t.Fatalf("%s: %v\n%s\njournal:\n%s", strings.Join(args, " "), err, out, journal)
	}
	return out
}

// write writes a file in the container.
func (c *container) write(path, text string) {
	c.t.Helper()
	name := filepath.Join(c.shared, "file")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.run("cp", "/mnt/file", path)
}

// path is a file of the container as this host sees it.
func (c *container) path(name string) string { return filepath.Join("/proc", c.init, "root", name) }

// until waits for something in the container.
func (c *container) until(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: it does not come\n%s", what, c.run("journalctl", "--no-pager", "-n", "60", "-u", "qbackup*"))
		}
	}
}
