package virt_test

import (
	"context"
	"encoding/json"
	"errors"
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

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/testtool"
)

func endOfQEMUInARun(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "crash-run")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	w.mustBackup(full, full)
	w.write("vda", 0, 64<<10, 2)
	w.meanwhile = w.kill
	s, err := w.backup()
	if !errors.Is(err, source.ErrGone) || !errors.Is(err, source.ErrUnusable) || !s.Point.IsZero() {
		t.Fatalf("point %s, error %v", s.Point, err)
	}
	w.meanwhile = nil
	w.mustBackup(rescan(agent.ReasonNoBitmap), rescan(agent.ReasonNoBitmap))
	w.start()
	w.mustBackup(incremental, incremental)
	w.write("vda", 0, 64<<10, 3)
	w.meanwhile = w.shutOff
	if _, err := w.backup(); !errors.Is(err, source.ErrGone) {
		t.Fatalf("error %v", err)
	}
	// All bitmaps were saved, that of the run that failed too.
	w.meanwhile = nil
	w.mustBackup(incremental, incremental)
	w.start()
	w.write("vda", 64<<10, 64<<10, 3)
	w.mustBackup(incremental, incremental)
}

// wholeRun tells a process of this test to make a backup.
const wholeRun = "QBACKUP_TEST_WHOLE_RUN"

// backUp makes a backup of a world that another process describes.
func backUp() {
	part := strings.Split(os.Getenv(wholeRun), "|")
	ctx := context.Background()
	store, err := dir.Open(filepath.Join(part[2], "repository"), dir.Options{})
	if err != nil {
		panic(err)
	}
	repository, err := repo.Open(ctx, store, repo.Options{})
	if err != nil {
		panic(err)
	}
	local, err := state.Open(filepath.Join(part[2], "state"), state.Options{})
	if err != nil {
		panic(err)
	}
	name, err := virt.MachineName(part[0])
	if err != nil {
		panic(err)
	}
	open := func(family ident.FamilyID) source.Machine {
		return virt.New(virt.Options{Family: family, Domain: part[0], URI: part[1], ScratchDir: filepath.Join(part[2], "scratch"), ScratchFloorBytes: 1 << 20,
			RuntimeDir: part[3], StartGuard: func(ctx context.Context, id string, actions map[string]guard.Action, cleanup json.RawMessage) (*guard.Guard, error) {
				return startGuard(ctx, filepath.Join(part[2], "guard"), id, actions, cleanup)
			}})
	}
	job := agent.Job{Machine: name, Repository: repository, State: local.Repository(repository.ID()), Open: open}
	if _, err := agent.Backup(ctx, job, agent.Options{Workers: 2, MemoryBytes: 64 << 20}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func killedAtAnyTime(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "any-time")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	w.mustBackup(full, full)
	rng := rand.New(rand.NewPCG(3, 33))
	ended := 0
	for n := range testtool.Count(3, 150) {
		w.write("vda", rng.IntN(100)<<14, 16<<10, byte(n))
		w.write("vdb", rng.IntN(100)<<14, 16<<10, byte(n))
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%s|%s", wholeRun, w.domain, l.URI, w.dir, w.runtimeDir()))
		var said strings.Builder
		c.Stdout, c.Stderr = &said, &said
		// The guard has standard error, too, and outlives the run.
		c.WaitDelay = 10 * time.Millisecond
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(rng.IntN(1000))*time.Millisecond, func() { _ = c.Process.Kill() })
		_ = c.Wait()
		if c.ProcessState.Success() {
			ended++
		} else if c.ProcessState.ExitCode() >= 0 {
			t.Fatalf("run %d failed: %s", n, said.String())
		}
		w.checkNewest()
		if n%2 == 0 {
			w.write("vdb", rng.IntN(100)<<14, 16<<10, byte(n))
		}
		w.mustBackup(incremental, incremental)
	}
	t.Logf("%d of the runs had ended before they were killed", ended)
	if state := l.Virsh(t, "domstate", w.domain); state != "running" {
		t.Errorf("afterwards it is %s", state)
	}
}

// checkNewest checks the newest point, which another process may have made: the guest
// has written nothing since.
func (w *world) checkNewest() {
	w.t.Helper()
	name, _ := virt.MachineName(w.domain)
	points, err := w.repository.Points(w.t.Context(), name)
	if err != nil || len(points) == 0 {
		w.t.Fatalf("%d points, %v", len(points), err)
	}
	run := points[len(points)-1].Run
	if _, known := w.truth[run]; !known {
		w.remember(run)
		w.check(run)
	}
}

// dyingRun tells a process of this test to make a cut and die.
const dyingRun = "QBACKUP_TEST_DYING_RUN"

// die makes the point in time of a run and ends without a word.
func die() {
	var family ident.FamilyID
	part := strings.Split(os.Getenv(dyingRun), "|")
	if err := family.UnmarshalText([]byte(part[0])); err != nil {
		panic(err)
	}
	o := virt.Options{Family: family, Domain: part[1], URI: part[2], ScratchDir: part[3], RuntimeDir: part[4], ScratchFloorBytes: 1 << 20}
	var g *guard.Guard
	o.StartGuard = func(ctx context.Context, id string, actions map[string]guard.Action, cleanup json.RawMessage) (_ *guard.Guard, err error) {
		if part[6] != "guarded" && part[6] != inHandshake {
			cleanup = nil
		}
		g, err = startGuard(ctx, filepath.Join(filepath.Dir(part[3]), "guard"), id, actions, cleanup)
		return g, err
	}
	m := virt.New(o)
	ctx := context.Background()
	e, err := m.Inspect(ctx)
	if err != nil {
		panic(err)
	}
	run, err := ident.ParseRunID(part[5])
	if err != nil {
		panic(err)
	}
	var bases []source.Base
	for _, d := range e.Disks {
		base := source.Base{Disk: d.Name, Family: family, AddFamily: true}
		for _, b := range d.Bitmaps {
			if b.Usable() {
				base.Run = b.Family.Stamp
			}
		}
		bases = append(bases, base)
	}
	if _, err := m.Freeze(ctx, run, bases); err != nil {
		panic(err)
	}
	if part[6] == inHandshake {
		c, err := net.Dial("unix", filepath.Join(part[4], ident.BitmapPrefix+family.String(), "qb1.nbd"))
		if err == nil {
			err = g.Keep(c)
		}
		if err != nil {
			panic(err)
		}
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// inHandshake is how a run dies with a connection in its handshake, for which QEMU would wait for ever.
const inHandshake = "guarded, in a handshake"

func killedRun(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "killed")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	w.mustBackup(full, full)
	for range testtool.Count(1, 10) {
		w.write("vda", 0, 64<<10, 2)
		w.dieInARun("")
		w.write("vdb", 1<<20, 64<<10, 3)
	}
	w.dieInARun("in libvirt's place")
	sockets, err := filepath.Glob(l.Dir("lib/qemu/domain-*-killed/qb1.nbd"))
	if err != nil || len(sockets) != 1 {
		t.Errorf("QEMU's socket is not where libvirt has the others: %q, %v", sockets, err)
	}
	if out, err := l.Try("domjobinfo", w.domain); err != nil || !strings.Contains(out, "Backup") {
		t.Errorf("the job of the dead run is not there: %s, %v", out, err)
	}
	// The stamps of the dead runs are of no run that the repository has heard of.
	s, err := w.backup()
	if err != nil || len(s.Alarms) == 0 || len(s.NotReset) > 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	w.check(s.Point)
	w.wantCheckpoints(s.Point)
	w.wantNothingLeft()
	w.write("vdb", 2<<20, 64<<10, 3)
	for _, how := range []string{"guarded", inHandshake} {
		w.dieInARun(how)
		began := time.Now()
		for { // the guard ends the job
			if out := l.Virsh(t, "domjobinfo", w.domain); !strings.Contains(out, "Backup") {
				break
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("%s: the job does not end", how)
			}
			time.Sleep(20 * time.Millisecond)
		}
		w.write("vdb", 2<<20, 64<<10, 4)
	}
	if entries, err := filepath.Glob(filepath.Join(w.dir, "scratch", "qb1-*")); err != nil || len(entries) > 0 {
		t.Errorf("the guard leaves %q, %v", entries, err)
	}
	w.shutOff()
	if s, err = w.backup(); err != nil {
		t.Fatal(err)
	}
	w.check(s.Point)
	w.wantCheckpoints(s.Point)
	w.start()
	w.mustBackup(incremental, incremental)
}

// dieInARun lets another process make a cut and die.
func (w *world) dieInARun(how string) {
	w.t.Helper()
	run, err := ident.NewRunID(time.Now(), deterministic{})
	if err != nil {
		w.t.Fatal(err)
	}
	c := exec.Command(os.Args[0])
	runtime := w.runtimeDir()
	if how == "in libvirt's place" {
		// There the folder that libvirt has for QEMU's sockets is where it says.
		c = w.libvirt.Inside(w.t, os.Args[0])
		runtime = ""
	}
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%s|%s|%s|%s|%s", dyingRun, w.family, w.domain, w.libvirt.URI,
		filepath.Join(w.dir, "scratch"), runtime, run, how))
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		w.t.Fatalf("the run did not die by its own hand: %v\n%s", err, out)
	}
}

type deterministic struct{}

func (deterministic) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func endsOfARun(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "ends")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	first := w.mustBackup(full, full)

	// It fails: the checkpoint goes.
	w.write("vda", 0, 64<<10, 2)
	broken := errors.New("the cut is not confirmed")
	w.confirm = func(context.Context) error { return broken }
	if _, err := w.backup(); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	w.confirm = nil
	w.wantCheckpoints(first.Point)
	w.wantNothingLeft()

	// Somebody ends its job.
	w.meanwhile = func() { l.Virsh(t, "domjobabort", w.domain) }
	if _, err := w.backup(); !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "ended from outside") {
		t.Fatalf("error %v", err)
	}
	w.meanwhile = nil
	w.wantCheckpoints(first.Point)
	w.wantNothingLeft()

	// Nobody knows whether the point stands: all checkpoints stay.
	w.leave = true
	s, err := w.backup()
	if err != nil || s.Point.IsZero() {
		t.Fatalf("point %s, error %v", s.Point, err)
	}
	w.leave = false
	w.wantNothingLeft()
	w.wantCheckpoints(s.Point, ident.BitmapName{Family: w.family, Stamp: first.Point}.String())
	w.write("vda", 64<<10, 64<<10, 3)
	last := w.mustBackup(incremental, incremental)
	if last.Disks[0].DirtyBytes != 64<<10 {
		t.Errorf("%d dirty bytes", last.Disks[0].DirtyBytes)
	}
}

func restartOfLibvirtd(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "restarted")
	w.define()
	w.start()
	w.write("vda", 0, 1<<20, 1)
	w.meanwhile = func() { l.Restart(t) }
	w.mustBackup(full, full)
	w.write("vda", 0, 64<<10, 2)
	w.mustBackup(incremental, incremental)
}
