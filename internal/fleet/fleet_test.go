package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/fleet"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/target"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a host with a repository.
type world struct {
	testing.TB
	dir  string
	open func(context.Context) (*repo.Repository, error)
	o    fleet.Options
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, dir: t.TempDir()}
	s := mem.New()
	if _, _, err := repo.Init(t.Context(), s, repo.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	w.open = func(ctx context.Context) (*repo.Repository, error) { return repo.Open(ctx, s, repo.Options{}) }
	local, err := state.Open(filepath.Join(w.dir, "state"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.o = fleet.Options{
		Host:  &target.Host{StateDir: filepath.Join(w.dir, "state"), Note: func(text string) { t.Log(text) }},
		State: local, Place: "mem", Open: func(ctx context.Context) (*repo.Repository, error) { return w.open(ctx) },
		Class: func(err error) string { return fmt.Sprint(err != nil) },
	}
	return w
}

// image makes an image with some data.
func (w *world) image(name string) string {
	w.Helper()
	path := filepath.Join(w.dir, name)
	f, err := os.Create(path)
	if err != nil {
		w.Fatal(err)
	}
	writer, err := qcow2.Create(qcow2.NewOSFile(f), qcow2.CreateOptions{SizeBytes: 4 << 20})
	if err != nil {
		w.Fatal(err)
	}
	_, err = writer.WriteAt(bytes.Repeat([]byte("content "), 8<<10), 1<<20)
	if err := errors.Join(err, writer.Close(), f.Close()); err != nil {
		w.Fatal(err)
	}
	return path
}

func offlineSpec(paths ...string) target.Spec {
	return target.Spec{Images: paths, Freeze: target.FreezeTry}
}

func named(machines []fleet.Machine) (names []ident.MachineName) {
	for _, m := range machines {
		names = append(names, m.Name)
	}
	return names
}

func TestOneMachinesFailureIsNoOthers(t *testing.T) {
	w := newWorld(t)
	var entries []fleet.Entry
	for i := range 6 {
		entries = append(entries, fleet.Entry{Spec: offlineSpec(w.image(fmt.Sprintf("m%d.qcow2", i)))})
	}
	if err := os.WriteFile(filepath.Join(w.dir, "m2.qcow2"), []byte("no image"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.dir, "m4.qcow2")); err != nil {
		t.Fatal(err)
	}
	machines, problems := fleet.Expand(t.Context(), entries)
	if len(problems) > 0 || len(machines) != 6 {
		t.Fatalf("%v, %v", named(machines), problems)
	}
	var began, ended atomic.Int32
	f := fleet.New(w.o)
	for i, e := range f.Run(t.Context(), machines, 3, func(fleet.Machine) { began.Add(1) }, func(agent.Ending) { ended.Add(1) }) {
		bad := i == 2 || i == 4
		if e.Machine != machines[i].Name || bad != (e.Err != nil) || bad == !e.Summary.Point.IsZero() {
			t.Errorf("%s: %v, point %v", e.Machine, e.Err, e.Summary.Point)
		}
		r := f.Results().Machine(e.Machine)
		if r.Attempt.Status != e.Status() || r.Attempt.Class != fmt.Sprint(bad) || bad != strings.Contains(r.Attempt.Error, "qcow2") || r.Success.Run != e.Summary.Point {
			t.Errorf("%s is remembered as %+v", e.Machine, r.Attempt)
		}
	}
	if began.Load() != 6 || ended.Load() != 6 {
		t.Errorf("%d began, %d ended", began.Load(), ended.Load())
	}
}

func TestAStoreThatCannotBeAskedIsRememberedAndAskedAgain(t *testing.T) {
	w := newWorld(t)
	machines, _ := fleet.Expand(t.Context(), []fleet.Entry{{Spec: offlineSpec(w.image("a.qcow2"))}})
	works := w.open
	w.open = func(context.Context) (*repo.Repository, error) { return nil, store.ErrTransient }
	f := fleet.New(w.o)
	if e := f.Backup(t.Context(), machines[0], new(agent.Stats)); !errors.Is(e.Err, store.ErrTransient) {
		t.Error(e.Err)
	}
	if got := f.Results().Machine("a"); got.Attempt.Status != state.StatusFailed || got.Attempt.Error == "" {
		t.Errorf("%+v", got)
	}
	w.open = works
	if e := f.Backup(t.Context(), machines[0], new(agent.Stats)); e.Err != nil {
		t.Error(e.Err)
	}
	if got := f.Results().Machine("a"); got.Attempt.Status != state.StatusOK || got.Counters.Attempts[state.StatusFailed] != 1 || got.Success.Run.IsZero() {
		t.Errorf("%+v", got)
	}
}

func TestAMachineAtWorkElsewhereIsBusyAndKeepsItsResult(t *testing.T) {
	w := newWorld(t)
	machines, _ := fleet.Expand(t.Context(), []fleet.Entry{{Spec: offlineSpec(w.image("a.qcow2"))}})
	f := fleet.New(w.o)
	if e := f.Backup(t.Context(), machines[0], new(agent.Stats)); e.Err != nil {
		t.Fatal(e.Err)
	}
	r, err := f.Repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := w.o.State.Repository(r.ID()).Machine("a").Lock(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if e := f.Backup(t.Context(), machines[0], new(agent.Stats)); !errors.Is(e.Err, state.ErrBusy) {
		t.Error(e.Err)
	}
	if got := f.Results().Machine("a"); got.Attempt.Status != state.StatusOK {
		t.Errorf("%+v", got)
	}
}

func TestNoMachineBeginsAfterAnInterrupt(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	machines, _ := fleet.Expand(t.Context(), []fleet.Entry{{Spec: offlineSpec(w.image("a.qcow2"))}, {Spec: offlineSpec(w.image("b.qcow2"))}})
	var began []ident.MachineName
	endings := fleet.New(w.o).Run(ctx, machines, 1, func(m fleet.Machine) { began = append(began, m.Name) }, func(agent.Ending) { cancel() })
	if endings[0].Err != nil || endings[0].Machine != "a" || endings[1].Machine != "" || len(began) != 1 {
		t.Errorf("%+v, %v", endings, began)
	}
}

func TestEntriesBecomeMachines(t *testing.T) {
	w := newWorld(t)
	a, _, c, d := w.image("a.qcow2"), w.image("b.qcow2"), w.image("-c.qcow2"), w.image("d.qcow2")
	each := fleet.Entry{Spec: offlineSpec(), Each: filepath.Join(w.dir, "*.qcow2"), Policy: fleet.Policy{Schedule: "@daily"}}
	one := fleet.Entry{Spec: offlineSpec(a)}
	one.Spec.Name = "b"
	machines, problems := fleet.Expand(t.Context(), []fleet.Entry{
		each, one, {Spec: offlineSpec(a, "x="+c)}, {Spec: offlineSpec(), Each: "/no/such/*"}, {Spec: offlineSpec(), Each: "["}, one,
	})
	// The image a is machine b's; and the file b would be a machine of that name.
	if got := named(machines); !slices.Equal(got, []ident.MachineName{"b", "d"}) {
		t.Fatalf("machines %v", got)
	}
	if machines[0].Spec.Images[0] != a || machines[0].Schedule != "" || machines[1].Spec.Images[0] != d || machines[1].Schedule != "@daily" {
		t.Errorf("%+v", machines)
	}
	var said []string
	for _, p := range problems {
		said = append(said, p.Error())
	}
	for i, want := range []string{"images " + a + ", x=" + c + ": usage: several images", "machine b: named twice", "each: " + c + ": usage", "each: /no/such/*: no file", "each: [: syntax error"} {
		if i >= len(said) || !strings.HasPrefix(said[i], want) {
			t.Errorf("problem %d: %q, want %q", i, said, want)
		}
	}
}

func TestWhatThisHostForgotIsRecalledFromTheRepository(t *testing.T) {
	w := newWorld(t)
	image := w.image("a.qcow2")
	machines, _ := fleet.Expand(t.Context(), []fleet.Entry{{Spec: offlineSpec(image)}})
	var notes []string
	w.o.Note = func(text string) { notes = append(notes, text) }
	f := fleet.New(w.o)
	first := f.Backup(t.Context(), machines[0], new(agent.Stats))
	if first.Err != nil || len(notes) > 0 {
		t.Fatal(first.Err, notes)
	}
	if err := os.RemoveAll(filepath.Join(w.dir, "state", "results")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	if e := f.Backup(t.Context(), machines[0], new(agent.Stats)); e.Err == nil {
		t.Fatal("a backup of nothing")
	}
	got := f.Results().Machine("a")
	if got.Success.Run != first.Summary.Point || got.Latest.Run != first.Summary.Point || !got.Success.Time.Equal(first.Summary.Time) || got.Attempt.Status != state.StatusFailed {
		t.Errorf("%+v", got)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "machine a: this host remembered nothing of it; its newest point is of ") {
		t.Errorf("%q", notes)
	}
	if f.Backup(t.Context(), machines[0], new(agent.Stats)); len(notes) != 1 {
		t.Errorf("it is said again: %q", notes)
	}
}
