package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/qbackup/qbackup/internal/store/storetest"
	"github.com/qbackup/qbackup/internal/testtool"
)

// A state directory that cannot be used is said at once; one that is damaged is made again from the repository.
func TestAStateDirectoryThatCannotBeUsedOrIsDamaged(t *testing.T) {
	w := newWorld(t)
	image := w.path("web.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
	testtool.Run(t, "qemu-io", "-c", "write -q -P 1 0 1M", image)
	config := w.configure("q.yaml", "", image)
	w.ok("--config", config, "run")
	state := w.path("state")

	// Damaged: every file is something else.
	err := filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			err = os.WriteFile(path, []byte("\x00spoiled{"), 0o600)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	testtool.Run(t, "qemu-io", "-c", "write -q -P 2 4M 64k", image)
	r := w.run("--config", config, "run", "-v")
	if r.code != 0 || !strings.Contains(r.stdout, "incremental") || !strings.Contains(r.stdout+r.stderr, "web") {
		t.Errorf("damaged: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if !strings.Contains(r.stderr, "repository") {
		t.Errorf("no word about what was lost:\n%s", r.stderr)
	}
	if out := w.ok("--config", config, "status", "--quick"); !strings.Contains(out, "ok") {
		t.Errorf("status: %s", out)
	}

	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	mounted := func(options, words string, fill bool) {
		t.Helper()
		place := t.TempDir()
		if err := syscall.Mount("none", place, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		defer syscall.Unmount(place, 0)
		if fill {
			f, err := os.Create(filepath.Join(place, "filler"))
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
			f.Close()
		}
		if options == "ro" {
			if err := syscall.Mount("none", place, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
		}
		before := len(w.points("web"))
		r := w.run("--config", config, "--state-dir", filepath.Join(place, "state"), "run")
		if r.code == 0 || !strings.Contains(r.stderr, words) || !strings.Contains(r.stderr, place) {
			t.Errorf("%s: exit %d\n%s%s", words, r.code, r.stdout, r.stderr)
		}
		if now := len(w.points("web")); now != before {
			t.Errorf("%s: %d points, before %d", words, now, before)
		}
	}
	mounted("ro", "read-only file system", false)
	mounted("", "no space left on device", true)
	w.ok("--config", config, "run")
}

// Keys are in no output, log, metric or file of ours, whatever goes wrong.
func TestKeysAreShownNowhere(t *testing.T) {
	server := storetest.S3(t)
	w := newWorld(t)
	image := w.path("web.raw")
	if err := os.WriteFile(image, []byte(strings.Repeat("x", 100_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	const wrong = "wJalr-canary-XUtnFEMI"
	keys, config := w.path("keys"), w.path("q.yaml")
	text := fmt.Sprintf("repository: %s\ncredentials: {file: %s}\nmetrics: {listen: \"off\", textfile: %s}\ndefaults: {schedule: \"@daily\"}\nmachines:\n  - {name: web, images: [\"raw:%s\"]}\n",
		server.Location("host1"), keys, w.path("q.prom"), image)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var clean []string
	for _, e := range w.env {
		if !strings.HasPrefix(e, "AWS_") && !strings.HasPrefix(e, "QBACKUP_REPOSITORY=") {
			clean = append(clean, e)
		}
	}
	w.env = clean
	shown := ""
	use := func(secret string, args ...string) {
		t.Helper()
		if err := os.WriteFile(keys, fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\nregion = %s\n", server.AccessKey, secret, server.Region), 0o600); err != nil {
			t.Fatal(err)
		}
		r := w.run(append([]string{"--config", config, "--retry-for", "1s"}, args...)...)
		shown += r.stdout + r.stderr
	}
	for _, secret := range []string{server.SecretKey, wrong} {
		for _, args := range [][]string{{"init"}, {"run", "-v"}, {"run", "--json", "web"}, {"config", "show"}, {"config", "check"}, {"points"}, {"status", "--json"}, {"prune", "-v"}, {"verify"}} {
			use(secret, args...)
		}
		a := w.agent(config)
		a.heard("STATUS=0 running, 0 waiting, next web")
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", a.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Process.Signal(syscall.SIGTERM)
		_ = a.Wait()
		shown += a.stderr.String() + string(cmdline)
	}
	server.Stop()
	use(server.SecretKey, "run", "web")
	if !strings.Contains(shown, "point ") || !strings.Contains(shown, "SignatureDoesNotMatch") {
		t.Errorf("nothing went right, or nothing wrong:\n%s", shown)
	}
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path != keys {
			b, readErr := os.ReadFile(path)
			if readErr != nil {
				return readErr
			}
			shown += string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{server.SecretKey, wrong} {
		if i := strings.Index(shown, secret); i >= 0 {
			t.Errorf("a key is shown: %.200s", shown[max(0, i-100):])
		}
	}
}
