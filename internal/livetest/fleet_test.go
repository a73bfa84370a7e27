package livetest

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// fleetStatus is one machine of status --json.
type fleetStatus struct {
	Machine string `json:"machine"`
	State   string `json:"state"`
	Problem string `json:"problem"`
	Result  struct {
		Attempt struct {
			Status, Class, Error string
		} `json:"attempt"`
	} `json:"result"`
}

// Many machines in one configuration, some of them running, three of them broken in different ways.
func TestOfManyMachinesTheBrokenOnesAreNamed(t *testing.T) {
	needDaemon(t)
	all, running := testtool.Count(24, 200), testtool.Count(4, 20)
	h := newHost(t)
	var config strings.Builder
	fmt.Fprintf(&config, "repository: %s\nlimits: {parallel: 4}\ndefaults: {objective: 1h}\nmetrics: {textfile: %s}\nmachines:\n", h.path("repository"), h.path("qbackup.prom"))
	for i := range running {
		name := fmt.Sprintf("live%d", i)
		m := newMachine(h, name, 4*mib)
		m.rewrite(0, 1*mib, uint64(i))
		fmt.Fprintf(&config, "  - {name: %s, qmp: %s}\n", name, m.monitor())
	}
	image := func(name string) string {
		path := h.path(name + ".qcow2")
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "4M")
		testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 9 1M 64k", path)
		return path
	}
	// No such image; no image at all; nobody behind the socket.
	fmt.Fprintf(&config, "  - {images: [%s]}\n", h.path("gone.qcow2"))
	spoiled := image("spoiled")
	if err := os.WriteFile(spoiled, []byte("no image"), 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&config, "  - {images: [%s]}\n  - {name: off, qmp: %s}\n", spoiled, h.path("off.qmp"))
	for i := range all - running - 3 {
		fmt.Fprintf(&config, "  - {images: [%s]}\n", image(fmt.Sprintf("m%d", i)))
	}
	path := h.path("q.yaml")
	if err := os.WriteFile(path, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	h.env = append(h.env, "QBACKUP_CONFIG="+path)

	stdout, stderr, code := h.run("run")
	if code != 3 || stdout != "" {
		t.Errorf("exit %d, and says %q", code, stdout)
	}
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	slices.Sort(lines)
	want := []string{
		fmt.Sprintf("qbackup: 3 of %d machines failed, points made: %d", all, all-3),
		"qbackup: machine gone: disk gone: " + h.path("gone.qcow2") + ": no such file or directory; check the path",
		"qbackup: machine off: inspect machine off: " + h.path("off.qmp") + ": QEMU cannot be asked",
		"qbackup: machine spoiled: disk spoiled: " + spoiled + ": open image",
	}
	if len(lines) != len(want) {
		t.Fatalf("%s", stderr)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, want[i]) {
			t.Errorf("%s\nwant %s", line, want[i])
		}
	}

	// Points, status, metrics and exit code agree.
	stdout, _, _ = h.run("points", "--json")
	var points []struct{ Machine string }
	if err := json.Unmarshal([]byte(stdout), &points); err != nil || len(points) != all-3 {
		t.Errorf("%d points, %v", len(points), err)
	}
	stdout, _, _ = h.run("status", "--json", "--quick")
	var status []fleetStatus
	if err := json.Unmarshal([]byte(stdout), &status); err != nil || len(status) != all {
		t.Fatalf("%d machines, %v", len(status), err)
	}
	broken := 0
	for _, s := range status {
		if bad := s.State != "ok"; bad {
			broken++
			if s.State != "failed" || s.Result.Attempt.Status != "failed" || s.Result.Attempt.Class != "source" || s.Problem == "" {
				t.Errorf("%+v", s)
			}
		}
	}
	if broken != 3 {
		t.Errorf("status knows %d broken machines", broken)
	}
	stdout, _, code = h.run("status", "--nagios", "--quick")
	if code != 1 || !strings.Contains(stdout, fmt.Sprintf("ok=%d new=0 partial=0 failed=3 late=0", all-3)) {
		t.Errorf("exit %d: %s", code, stdout)
	}
	metrics, err := os.ReadFile(h.path("qbackup.prom"))
	if err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]int{
		`(?m)^qbackup_last_attempt_status\{machine="(gone|off|spoiled)",status="failed"\} 1$`: 3,
		`(?m)^qbackup_last_attempt_status\{.*status="failed"\} 1$`:                            3,
		`(?m)^qbackup_last_attempt_status\{.*status="ok"\} 1$`:                                all - 3,
		`(?m)^qbackup_last_success_timestamp_seconds\{`:                                       all - 3,
		fmt.Sprintf(`(?m)^qbackup_configured_machines %d$`, all):                              1,
	} {
		if n := len(regexp.MustCompile(pattern).FindAll(metrics, -1)); n != want {
			t.Errorf("%d lines match %s, want %d", n, pattern, want)
		}
	}
}
