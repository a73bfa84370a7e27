package testtool

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Libvirtd is a libvirtd of its own: it has its own sockets, state and configuration,
// so that the host's is neither needed nor disturbed. Its domains run as root, with
// TCG.
type Libvirtd struct {
	// URI is what virsh needs to reach it.
	URI string

	dir  string
	exit chan error
	cmd  *exec.Cmd
}

// libvirtdTime bounds how long one is waited for.
const libvirtdTime = 30 * time.Second

// hidden are the host's folders that a Libvirtd sees other ones in place of. All of
// them come with the package; /run is always there.
var hidden = [][2]string{
	{"run", "/run"}, {"lib", "/var/lib/libvirt"}, {"cache", "/var/cache/libvirt"}, {"log", "/var/log/libvirt"}, {"etc", "/etc/libvirt"},
}

// StartLibvirtd starts one. It needs root, for its own view of the file system: a
// user without is treated as one without libvirtd. Stop ends it.
func StartLibvirtd(t testing.TB) *Libvirtd {
	t.Helper()
	for _, tool := range []string{"libvirtd", "virsh", "unshare", "qemu-system-x86_64"} {
		Need(t, tool)
	}
	if os.Geteuid() != 0 {
		Lacking(t, "a libvirtd of its own needs root")
	}
	// The path of a socket below it is bounded.
	dir, err := os.MkdirTemp("", "qb-libvirtd-")
	if err != nil {
		t.Fatal(err)
	}
	l := &Libvirtd{dir: dir, exit: make(chan error, 1)}
	l.URI = "qemu+unix:///system?socket=" + filepath.Join(dir, "run", "libvirt", "libvirt-sock")
	if err := l.configure(); err != nil {
		t.Fatal(err)
	}
	// The daemon sees what is mounted when it starts.
	if err := unix.Mount("none", l.Small(), "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if err := l.start(t); err != nil {
		l.Stop(t)
		t.Fatal(err)
	}
	return l
}

// Small is a folder with a file system of 64 MiB.
func (l *Libvirtd) Small() string { return filepath.Join(l.dir, "small") }

func (l *Libvirtd) configure() error {
	if err := os.Mkdir(l.Small(), 0o755); err != nil {
		return err
	}
	for _, h := range hidden {
		if err := os.MkdirAll(filepath.Join(l.dir, h[0]), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"qemu.conf": `user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
`,
		"libvirtd.conf": fmt.Sprintf(`auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:file:%s"
`, filepath.Join(l.dir, "libvirtd.log")),
	} {
		if err := os.WriteFile(filepath.Join(l.dir, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// start starts the daemon and waits for its answer.
func (l *Libvirtd) start(t testing.TB) error {
	var script strings.Builder
	script.WriteString("set -e\n")
	for _, h := range hidden {
		fmt.Fprintf(&script, "mount --bind '%s' %s\n", filepath.Join(l.dir, h[0]), h[1])
	}
	fmt.Fprintf(&script, "exec '%s' --config /etc/libvirt/libvirtd.conf --pid-file '%s'\n", Need(t, "libvirtd"), filepath.Join(l.dir, "pid"))
	l.cmd = exec.Command(Need(t, "unshare"), "--mount", "--propagation", "private", "/bin/sh", "-c", script.String())
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := os.OpenFile(filepath.Join(l.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	l.cmd.Stdout, l.cmd.Stderr = log, log
	if err := l.cmd.Start(); err != nil {
		return err
	}
	go func(cmd *exec.Cmd) { l.exit <- cmd.Wait() }(l.cmd)
	for deadline := time.Now().Add(libvirtdTime); ; {
		if out, err := l.Try("version"); err == nil {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("libvirtd does not answer: %s\n%s", out, l.Log())
		}
		select {
		case err := <-l.exit:
			l.exit <- err
			return fmt.Errorf("libvirtd has ended: %v\n%s", err, l.Log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Dir is a folder of the test's, whose path is short enough for sockets. It is there
// until Stop.
func (l *Libvirtd) Dir(name string) string { return filepath.Join(l.dir, name) }

// Restart ends the daemon, not its domains, and starts it again.
func (l *Libvirtd) Restart(t testing.TB) {
	t.Helper()
	l.end()
	if err := l.start(t); err != nil {
		t.Fatal(err)
	}
}

// end ends the daemon and waits for it.
func (l *Libvirtd) end() {
	if l.cmd == nil || l.cmd.Process == nil {
		return
	}
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-l.exit:
	case <-time.After(libvirtdTime):
		_ = l.cmd.Process.Kill()
		<-l.exit
	}
}

// Stop ends all domains and the daemon, and removes everything.
func (l *Libvirtd) Stop(t testing.TB) {
	t.Helper()
	if out, err := l.Try("list", "--uuid"); err == nil {
		for _, uuid := range strings.Fields(out) {
			if out, err := l.Try("destroy", uuid); err != nil {
				t.Errorf("destroy a domain: %s", out)
			}
		}
	}
	l.end()
	if err := unix.Unmount(l.Small(), 0); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		t.Error(err)
	}
}

// Try runs virsh and returns what it prints.
func (l *Libvirtd) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), libvirtdTime)
	defer cancel()
	c := exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", l.URI}, args...)...)
	c.Env = append(os.Environ(), "LC_ALL=C")
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Virsh runs virsh and demands success.
func (l *Libvirtd) Virsh(t testing.TB, args ...string) string {
	t.Helper()
	out, err := l.Try(args...)
	if err != nil {
		t.Fatalf("virsh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Log is what the daemon has printed and logged.
func (l *Libvirtd) Log() string {
	var all strings.Builder
	for _, name := range []string{"output", "libvirtd.log"} {
		text, err := os.ReadFile(filepath.Join(l.dir, name))
		if err == nil {
			all.Write(text)
		}
	}
	return all.String()
}

// Inside is a program that sees the file system as the daemon does.
func (l *Libvirtd) Inside(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	view := fmt.Sprintf("--mount=/proc/%d/ns/mnt", l.cmd.Process.Pid)
	return exec.Command(Need(t, "nsenter"), append([]string{view, program}, args...)...)
}

// Pid is the process of a domain's QEMU.
func (l *Libvirtd) Pid(t testing.TB, domain string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, "run", "libvirt", "qemu", domain+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
