package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/store/storetest"
	"github.com/qbackup/qbackup/internal/testtool"
)

// use makes a world work with a bucket.
func (w *world) use(s *storetest.Server, prefix string) {
	w.repo = s.Location(prefix)
	w.env = append(w.env, "QBACKUP_REPOSITORY="+w.repo)
	for name, value := range s.Environ() {
		w.env = append(w.env, name+"="+value)
	}
}

func TestEverythingWorksInABucketWithoutTheRightToDelete(t *testing.T) {
	server := storetest.S3(t)
	agent := server.Agent(t)
	w := newWorld(t)
	w.use(agent, "hosts/one")
	w.ok("init")
	w.ok("init") // an existing repository is no error
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "128M")
	c := newChurn(image, 128<<20, 65536, 101)
	c.write(t, 40)
	var copies []string
	for round := range testtool.Count(4, 10) {
		copies = append(copies, w.rawCopy(image, "copy"+string(rune('a'+round))+".raw"))
		s := w.backup(image)
		if round > 0 && s.Disks[0].Mode != "incremental" {
			t.Fatalf("round %d: %s: %s", round, s.Disks[0].Mode, s.Disks[0].Reason)
		}
		c.write(t, 10)
	}
	for i, p := range w.points("vm") {
		w.restoresTo("vm", p, copies[i])
	}
	w.ok("verify", "--data")
}

func TestARunWhoseStoreGoesAwayLosesNothing(t *testing.T) {
	server := storetest.S3(t)
	w := newWorld(t)
	w.use(server, "")
	w.ok("init")
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "1G")
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 0 64M", image)
	w.backup(image)
	noise := w.path("noise")
	testtool.Run(t, "dd", "if=/dev/urandom", "of="+noise, "bs=1M", "count=200", "status=none")
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -s "+noise+" 100M 200M", image)
	truth := w.rawCopy(image, "truth.raw")

	before := len(packsOf(t, server))
	run := w.command("backup", "--retry-for", "2s", image)
	var stderr strings.Builder
	run.Stderr = &stderr
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); len(packsOf(t, server)) == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no pack arrived within a minute")
		}
	}
	server.Stop()
	if err := run.Wait(); err == nil {
		t.Fatal("the run succeeded without a store")
	}
	if code := run.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "unreachable") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
	w.clean(image)
	r := w.run("backup", "--retry-for", "1s", image)
	if r.code != 1 || !strings.Contains(r.stderr, "unreachable") {
		t.Errorf("with the store still away: exit %d: %s", r.code, r.stderr)
	}
	server.Start(t)
	s := w.backup(image)
	if s.Disks[0].Mode != "incremental" {
		t.Errorf("the bitmap did not survive: %s: %s", s.Disks[0].Mode, s.Disks[0].Reason)
	}
	w.restoresTo("vm", s.Point, truth)
	w.ok("verify", "--data")
}

// packsOf lists the packs in the server's bucket.
func packsOf(t *testing.T, server *storetest.Server) []string {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(server.Folder, "data", "vm", "*", "p*"))
	if err != nil {
		t.Fatal(err)
	}
	return packs
}

func TestWrongCredentialsAreDeniedAndNeverShown(t *testing.T) {
	server := storetest.S3(t)
	w := newWorld(t)
	image := w.path("vm.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
	w.use(server, "")
	w.ok("init")
	w.backup(image)
	const canary = "canary-that-must-not-be-printed"
	w.env = append(w.env, "AWS_SECRET_ACCESS_KEY="+canary)
	for _, args := range [][]string{{"backup", image}, {"points"}, {"-v", "verify"}} {
		r := w.fails(12, []string{"denied"}, args...)
		if strings.Contains(r.stdout+r.stderr, canary) {
			t.Errorf("%v prints the secret key", args)
		}
	}
	w.env = append(w.env, "AWS_SECRET_ACCESS_KEY="+server.SecretKey)
	if s := w.backup(image); s.Disks[0].Mode != "incremental" {
		t.Errorf("%+v", s.Disks[0])
	}
	w.env = append(w.env, "QBACKUP_REPOSITORY="+strings.Replace(server.Location(""), server.Bucket, "no-such-bucket", 1))
	r := w.run("points")
	if r.code == 0 || !strings.Contains(r.stderr, "no-such-bucket") {
		t.Errorf("a bucket that is not there: exit %d: %s", r.code, r.stderr)
	}
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
}
