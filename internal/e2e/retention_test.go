package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/store/storetest"
)

// as gives the world with the keys of a user of an S3 server.
func (w *world) as(s *storetest.Server) *world {
	v := *w
	v.env = append(append([]string{}, w.env...), "QBACKUP_REPOSITORY="+s.Location("host1"))
	for name, value := range s.Environ() {
		v.env = append(v.env, name+"="+value)
	}
	return &v
}

// Each of the policies in configs/s3 lets its user do what it is for, and nothing more.
func TestThePoliciesForBucketsAreEnough(t *testing.T) {
	server := storetest.S3(t)
	users := server.Users(t, "agent", "prune", "restore")
	w := newWorld(t)
	agent, pruner, restorer := w.as(users["agent"]), w.as(users["prune"]), w.as(users["restore"])
	agent.ok("init")
	image := w.path("web.raw")
	for n := range 2 {
		if err := os.WriteFile(image, []byte(strings.Repeat(fmt.Sprint(n), 300_000)), 0o600); err != nil {
			t.Fatal(err)
		}
		agent.ok("backup", "--machine", "web", "raw:"+image)
	}
	points := agent.points("web")
	agent.ok("pin", "--machine", "web", points[1])
	agent.ok("forget", "--machine", "web", points[0])
	agent.ok("unforget", "--machine", "web", points[0])
	agent.ok("verify", "--data")
	agent.fails(12, []string{"denied"}, "prune")
	if out := pruner.ok("prune"); !strings.Contains(out, "objects deleted: 2 ") {
		t.Errorf("prune: %s", out)
	}
	restorer.ok("restore", "--machine", "web", "--format", "raw", "--to", w.path("out"))
	restorer.ok("verify", "--data", "--record=false")
	restorer.fails(12, []string{"denied"}, "backup", "--machine", "web", "raw:"+image)
	restorer.fails(12, []string{"denied"}, "forget", "--machine", "web", points[0])
}

// The policy of the configuration is applied by run and by the service, and what it lets go is deleted when its time has come.
func TestAPolicyIsAppliedByRunAndByTheService(t *testing.T) {
	w := newWorld(t)
	image := w.path("web.raw")
	config := w.path("q.yaml")
	write := func(schedule string) {
		text := fmt.Sprintf("defaults: {keep: {last: 1}, schedule: %q}\nprune: {schedule: \"@daily\"}\nmetrics: {listen: off, textfile: %s}\nmachines:\n  - {name: web, images: [\"raw:%s\"]}\n",
			schedule, w.path("q.prom"), image)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	age := func(by string, files ...string) {
		t.Helper()
		if out, err := exec.Command("touch", append([]string{"-d", by}, files...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	listed := func(pattern string) []string {
		files, err := filepath.Glob(filepath.Join(w.repo, pattern))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	change := func(n int) {
		if err := os.WriteFile(image, []byte(strings.Repeat(fmt.Sprintf("%07d ", n), 50_000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("@daily")
	change(1)
	w.ok("--config", config, "run", "web")
	age("30 days ago", listed("points/web/*")...)
	change(2)
	w.ok("--config", config, "run", "web") // by name: nothing is pruned
	if got := w.points("web"); len(got) != 1 {
		t.Fatalf("after the second run: %v", got)
	}
	if len(listed("runs/web/*")) != 2 {
		t.Errorf("a run of one machine has pruned: %v", listed("runs/web/*"))
	}
	age("8 days ago", listed("forgotten/web/*")...)
	data := len(listed("data/web/*/*"))
	w.ok("--config", config, "run") // web is due as never before, and so is the prune
	if now := len(listed("data/web/*/*")); now >= data+3 || len(listed("runs/web/*")) != 0 {
		t.Errorf("nothing was pruned: %d objects, before %d; runs %v", now, data, listed("runs/web/*"))
	}
	text, err := os.ReadFile(w.path("q.prom"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`qbackup_points{machine="web"} 2`, `qbackup_forgotten_points_total{machine="web"} 1`, "qbackup_prune_failed 0", `qbackup_retention_failed{machine="web"} 0`} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
	w.ok("restore", "--machine", "web", "--format", "raw", "--to", w.path("out"))

	// The service: its machine is due at each minute, and yesterday's prune again.
	age("30 days ago", listed("points/web/*")...)
	write("* * * * *")
	a := w.agent(config)
	a.heard("READY=1")
	limit := time.Now().Add(2 * time.Minute)
	for len(w.points("web")) != 2 && time.Now().Before(limit) {
		time.Sleep(200 * time.Millisecond)
	}
	if got := w.points("web"); len(got) != 2 {
		t.Errorf("the service leaves %v", got)
	}
	if err := a.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := a.Wait(); err != nil {
		t.Errorf("%v: %s", err, a.stderr)
	}
	w.ok("verify", "--data")
}
