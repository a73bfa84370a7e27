package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a machine, a repository and a host, all in memory but for the state
// directory; what every cut held is remembered.
type world struct {
	t     *testing.T
	mem   *mem.Store
	store *fault.Store
	clock time.Time
	rng   *rand.Rand
	seed  *rand.ChaCha8

	disks []*ghostDisk
	ghost *ghost // of the last backup
	truth map[ident.RunID]map[string][]byte

	stateDir    string
	host, boot  string
	die         func(step string) bool
	confirm     error
	readers     map[string]bool
	freeze      error
	extras      []source.Extra
	consistency string
}

func newWorld(t *testing.T, disks ...*ghostDisk) *world {
	t.Helper()
	w := &world{
		t: t, clock: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), rng: rand.New(rand.NewPCG(7, 7)), seed: rand.NewChaCha8([32]byte{7}),
		disks: disks, truth: map[ident.RunID]map[string][]byte{}, stateDir: t.TempDir(), host: "host-a", boot: "boot-1", readers: map[string]bool{},
	}
	w.mem = mem.NewWithClock(func() time.Time { return w.clock })
	w.store = fault.New(w.mem, 1)
	if _, created, err := repo.Init(t.Context(), w.mem, repo.InitOptions{Options: w.repoOptions()}); err != nil || !created {
		t.Fatal(created, err)
	}
	return w
}

func (w *world) repoOptions() repo.Options {
	return repo.Options{Clock: func() time.Time { return w.clock }, Random: w.seed}
}

// machine opens the source of a backup and remembers what its cuts hold.
func (w *world) machine(family ident.FamilyID) source.Machine {
	w.ghost = &ghost{family: family, disks: w.disks, die: w.die, confirm: w.confirm, readers: w.readers, freeze: w.freeze, extras: w.extras, consistency: w.consistency}
	return &remembering{w.ghost, w}
}

type remembering struct {
	*ghost
	w *world
}

func (r *remembering) Freeze(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	r.w.truth[run] = map[string][]byte{}
	for _, b := range bases {
		r.w.truth[run][b.Disk] = bytes.Clone(r.ghost.disk(b.Disk).content)
	}
	return r.ghost.Freeze(ctx, run, bases)
}

// backup is one call, a minute after whatever came before.
func (w *world) backup(change ...func(*Job, *Options)) (Summary, error) {
	w.t.Helper()
	w.clock = w.clock.Add(time.Minute)
	r, err := repo.Open(w.t.Context(), w.store, w.repoOptions())
	if err != nil {
		return Summary{}, err
	}
	s, err := state.Open(w.stateDir, state.Options{Report: func(err error) { w.t.Error(err) }})
	if err != nil {
		w.t.Fatal(err)
	}
	job := Job{Machine: "web", Repository: r, State: s.Repository(r.ID()), Open: w.machine}
	o := Options{Clock: func() time.Time { return w.clock }, Random: w.seed, Host: w.host, BootID: w.boot, Workers: 2, MemoryBytes: 64 << 20}
	for _, c := range change {
		c(&job, &o)
	}
	summary, err := Backup(w.t.Context(), job, o)
	if w.ghost != nil && w.ghost.open != 0 {
		w.t.Errorf("%d cuts were not ended", w.ghost.open)
	}
	return summary, err
}

// mustBackup is a backup that makes a complete point.
func (w *world) mustBackup(change ...func(*Job, *Options)) Summary {
	w.t.Helper()
	s, err := w.backup(change...)
	if err != nil {
		w.t.Fatalf("backup: %v", err)
	}
	if s.Point.IsZero() {
		w.t.Fatal("backup made no point")
	}
	return s
}

// check reads every point and compares it with what its cut held.
func (w *world) check() int {
	w.t.Helper()
	ctx := w.t.Context()
	r, err := repo.Open(ctx, w.mem, w.repoOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	points, err := r.Points(ctx, "web")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range points {
		point, err := r.OpenPoint(ctx, "web", p.Run)
		if err != nil {
			w.t.Fatalf("open point %s: %v", p.Run, err)
		}
		for _, d := range point.Record().Disks {
			if d.Mode == format.ModeMissing {
				continue
			}
			disk, err := point.Disk(d.Name)
			if err != nil {
				w.t.Fatal(err)
			}
			want := w.truth[p.Run][d.Name]
			got := make([]byte, disk.Size())
			if n, err := disk.ReadAt(got, 0); n != len(got) || err != nil && err != io.EOF {
				w.t.Fatalf("read point %s: %d bytes, %v", p.Run, n, err)
			}
			if !bytes.Equal(got, want) {
				w.t.Fatalf("point %s (%s %s): disk %s differs from what the cut held, first at byte %d", p.Run, d.Mode, d.Reason, d.Name, firstDifference(got, want))
			}
		}
	}
	return len(points)
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// guest writes at random places, sometimes zeros.
func (w *world) guest(writes int) {
	for _, d := range w.disks {
		for range writes {
			n := 1 + w.rng.IntN(100_000)
			off := w.rng.IntN(max(len(d.content)-n, 1))
			n = min(n, len(d.content)-off)
			p := make([]byte, n)
			if w.rng.IntN(4) > 0 {
				_, _ = w.seed.Read(p)
			}
			d.write(off, p)
		}
	}
}

// wantModes checks mode and reason of each disk.
func wantModes(t *testing.T, s Summary, want ...string) {
	t.Helper()
	var got []string
	for _, d := range s.Disks {
		text := d.Mode
		if d.Reason != ReasonNone {
			text += ": " + string(d.Reason)
		}
		got = append(got, text)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("modes are %q, want %q", got, want)
	}
}

func wantAlarms(t *testing.T, s Summary, want ...AlarmKind) {
	t.Helper()
	var got []AlarmKind
	for _, a := range s.Alarms {
		got = append(got, a.Kind)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("alarms are %q, want %q (%+v)", got, want, s.Alarms)
	}
}

const (
	first       = "full: first backup"
	incremental = format.ModeIncremental
)

func rescanBecause(r Reason) string { return format.ModeRescan + ": " + string(r) }

func wantError(t *testing.T, err error, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}
