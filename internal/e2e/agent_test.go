package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// notified listens as systemd does.
func notified(t *testing.T) (path string, messages <-chan string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	c := make(chan string, 1000)
	go func() {
		defer close(c)
		buffer := make([]byte, 4096)
		for {
			n, err := socket.Read(buffer)
			if err != nil {
				return
			}
			select {
			case c <- string(buffer[:n]):
			default:
			}
		}
	}()
	return path, c
}

// heard waits for a message to systemd.
func (a *agent) heard(prefix string) {
	a.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case m := <-a.messages:
			if strings.HasPrefix(m, prefix) {
				return
			}
		case <-limit:
			a.t.Fatalf("systemd has not heard %s", prefix)
		}
	}
}

// agent is a service that runs.
type agent struct {
	*exec.Cmd
	t        *testing.T
	stderr   *bytes.Buffer
	messages <-chan string // to systemd
}

func (w *world) agent(config string) *agent {
	w.t.Helper()
	socket, messages := notified(w.t)
	c := w.command("--config", config, "agent", "--stop-within", "20s")
	c.Env = append(c.Env, "NOTIFY_SOCKET="+socket)
	a := &agent{c, w.t, new(bytes.Buffer), messages}
	c.Stderr = a.stderr
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	return a
}

// configure writes a configuration for machines named by their images.
func (w *world) configure(name, settings string, images ...string) string {
	w.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "repository: %s\nmetrics: {listen: \"off\"}\n%s\n", w.repo, settings)
	if len(images) > 0 {
		b.WriteString("machines:\n")
	}
	for _, image := range images {
		fmt.Fprintf(&b, "  - images: [%s]\n", image)
	}
	path := w.path(name)
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// forgetResults makes every machine due at once: what is not known was never run.
func (w *world) forgetResults() {
	w.t.Helper()
	if err := os.RemoveAll(filepath.Join(w.dir, "state", "results")); err != nil {
		w.t.Fatal(err)
	}
}

// A service that is killed, stopped and told to read its configuration again at random instants, while guests write
// between its runs.
func TestAServiceThatIsKilledAtAnyInstantGoesOnByItself(t *testing.T) {
	killService(t, 31, testtool.Count(8, 250))
}

// The same with other instants: both together kill for ten minutes at full count.
func TestAServiceThatIsKilledAtOtherInstantsGoesOnToo(t *testing.T) {
	killService(t, 41, testtool.Count(2, 250))
}

func killService(t *testing.T, seed uint64, lives int) {
	const sizeBytes, machines = 24 << 20, 3
	w := newWorld(t)
	var images []string
	var churns []*churn
	for i := range machines {
		image := w.path(fmt.Sprintf("m%d.qcow2", i))
		testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, fmt.Sprint(sizeBytes))
		images = append(images, image)
		churns = append(churns, newChurn(image, sizeBytes, 65536, uint64(100+i)))
	}
	config := w.configure("q.yaml", "defaults: {schedule: \"@daily\"}\nlimits: {parallel: 2}", images...)
	random := rand.New(rand.NewPCG(seed, 32))
	known := map[int]int{}
	ends := map[string]int{}
	for n := range lives {
		truth := make([]string, machines)
		for i, c := range churns {
			c.write(t, 5)
			truth[i] = w.rawCopy(images[i], fmt.Sprintf("truth%d.raw", i))
		}
		w.forgetResults()
		a := w.agent(config)
		a.heard("READY=1")
		pause := func() { time.Sleep(time.Duration(random.Int64N(int64(400 * time.Millisecond)))) }
		for range random.IntN(3) {
			pause()
			_ = a.Process.Signal(syscall.SIGHUP)
			ends["hangup"]++
		}
		pause()
		signal := []os.Signal{syscall.SIGKILL, syscall.SIGTERM}[random.IntN(2)]
		ends[signal.String()]++
		_ = a.Process.Signal(signal)
		err := a.Wait()
		if signal == syscall.SIGTERM && err != nil {
			t.Fatalf("life %d: a stop ends with %v: %s", n, err, a.stderr)
		}
		// The next life needs no help.
		w.forgetResults()
		a = w.agent(config)
		a.heard("READY=1")
		a.heard("STATUS=0 running, 0 waiting, next m")
		_ = a.Process.Signal(syscall.SIGTERM)
		if err := a.Wait(); err != nil || strings.Contains(a.stderr.String(), "level=ERROR") || strings.Contains(a.stderr.String(), "warning: ") {
			t.Fatalf("life %d: %v: %s", n, err, a.stderr)
		}
		for i := range machines {
			name := fmt.Sprintf("m%d", i)
			all := w.points(name)
			if len(all) == known[i] {
				t.Fatalf("life %d: no point of %s", n, name)
			}
			for _, p := range all[known[i]:] {
				w.restoresTo(name, p, truth[i])
			}
			known[i] = len(all)
		}
	}
	w.ok("verify", "--data")
	t.Logf("%v", ends)
}

func TestAServiceTakesANewConfigurationAndRefusesAWrongOne(t *testing.T) {
	w := newWorld(t)
	image := w.path("a.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "4M")
	config := w.configure("q.yaml", "defaults: {schedule: \"@daily\"}")
	a := w.agent(config)
	a.heard("READY=1")
	second := w.agent(config)
	if err := second.Wait(); err == nil || second.ProcessState.ExitCode() != 11 || !strings.Contains(second.stderr.String(), "another agent is at work") {
		t.Errorf("a second agent: %v: %s", err, second.stderr)
	}
	if err := os.WriteFile(config, []byte("machinse: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = a.Process.Signal(syscall.SIGHUP)
	a.heard("RELOADING=1")
	a.heard("READY=1")
	w.configure("q.yaml", "defaults: {schedule: \"@daily\"}", image)
	_ = a.Process.Signal(syscall.SIGHUP)
	a.heard("RELOADING=1")
	a.heard("STATUS=1 running")
	a.heard("STATUS=0 running, 0 waiting, next a at ")
	_ = a.Process.Signal(syscall.SIGTERM)
	if err := a.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	said := a.stderr.String()
	for _, want := range []string{"none has a schedule", "the old one holds: ", "did you mean machines?", "the configuration was read again",
		`level=INFO msg="backup begins" machine=a`, `level=INFO msg="backup ended" machine=a status=ok duration_seconds=`} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said:\n%s", want, said)
		}
	}
	if len(w.points("a")) != 1 {
		t.Error("the new machine has no point")
	}
}

func TestAServiceWhoseStoreIsAwayStartsAndTriesAgain(t *testing.T) {
	w := newWorld(t)
	image := w.path("a.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "4M")
	config := w.configure("q.yaml", "defaults: {schedule: \"* * * * *\"}", image)
	if err := os.Rename(w.repo, w.repo+"-away"); err != nil {
		t.Fatal(err)
	}
	a := w.agent(config)
	a.heard("READY=1")
	a.heard("STATUS=0 running, 0 waiting, next a")
	if s := w.run("--config", config, "status"); !strings.Contains(s.stdout, "a        failed") || !strings.Contains(s.stdout, "mount it, or make it with") {
		t.Errorf("%s", s.stdout)
	}
	if err := os.Rename(w.repo+"-away", w.repo); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(90 * time.Second); w.run("points", "--machine", "a").code != 0; time.Sleep(time.Second) {
		if time.Now().After(limit) {
			t.Fatal("it does not try again")
		}
	}
	_ = a.Process.Signal(syscall.SIGTERM)
	if err := a.Wait(); err != nil {
		t.Errorf("%v: %s", err, a.stderr)
	}
}
