package virt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/guard"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(guardProcess) != "":
		if err := guard.Serve(context.Background(), os.Stdin, os.Stdout, guard.Hooks{Cleanup: virt.Cleanup}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(dyingRun) != "":
		die()
	case os.Getenv(wholeRun) != "":
		backUp()
	}
	goleak.VerifyTestMain(m)
}

// guardProcess tells a process of this test to be a guard.
const guardProcess = "QBACKUP_TEST_GUARD"

// startGuard starts this program as a guard.
func startGuard(ctx context.Context, folder, id string, actions map[string]guard.Action, cleanup json.RawMessage) (*guard.Guard, error) {
	return guard.Start(ctx, []string{"/usr/bin/env", guardProcess + "=1", os.Args[0]}, guard.Spec{Folder: folder, ID: id, Actions: actions, Cleanup: cleanup})
}

// TestWithLibvirtd is everything that needs a real libvirtd, which takes some seconds
// to start.
func TestWithLibvirtd(t *testing.T) {
	l := testtool.StartLibvirtd(t)
	t.Cleanup(func() { l.Stop(t) })
	t.Run("libvirtd is restarted in the middle of a run", func(t *testing.T) { restartOfLibvirtd(t, l) })
	for _, c := range []struct {
		name string
		test func(*testing.T, *testtool.Libvirtd)
	}{
		{"a machine stays incremental whatever state it is in", staysIncremental},
		{"a crash of QEMU costs a rescan, and nothing stays behind", crashOfQEMU},
		{"QEMU ends in the middle of a run", endOfQEMUInARun},
		{"a run that is killed leaves nothing for the next but its bits", killedRun},
		{"runs that are killed at any time", killedAtAnyTime},
		{"all ways in which a run can end", endsOfARun},
		{"jobs and checkpoints of others", worksOfOthers},
		{"bitmaps that somebody disabled or uses", disturbedBitmaps},
		{"only what the guest keeps is backed up", choiceOfDisks},
		{"disks come, go and grow", changingDisks},
		{"an external snapshot and its commit", externalSnapshot},
		{"definition and firmware", extraFiles},
		{"names and states", namesAndStates},
		{"two disks on one image", sharedImage},
		{"the scratch space ends", scratchSpace},
		{"a guest without an agent", noAgent},
		{"a Linux is frozen for an instant", realGuest},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, l)
		})
	}
}

// diskBytes is the size of every disk here.
const diskBytes = 8 << 20

// world is a libvirtd, a domain with two disks, a repository and what the guest has
// written. The domain has no operating system: its disks are written by its QEMU.
type world struct {
	t         *testing.T
	libvirt   *testtool.Libvirtd
	dir       string
	domain    string
	devices   string // XML of more devices
	os        string // XML inside of <os>
	uuid      string
	memoryMiB int
	disks     []*testDisk

	repository *repo.Repository
	state      *state.State
	family     ident.FamilyID
	truth      map[ident.RunID]map[string][]byte
	// inspected happens between looking at the domain and the cut, meanwhile between
	// the cut and its reading.
	inspected func()
	meanwhile func()
	change    func(*virt.Options)
	confirm   func(context.Context) error // takes the place of the cut's
	leave     bool                        // Commit is Leave
	others    []string                    // checkpoints that are not ours
}

// testDisk is a disk and what it holds.
type testDisk struct {
	target, path string
	iothread     bool
	raw          bool
	serial       string
	volume       string // in a pool that is called after the domain
	content      []byte
}

func newWorld(t *testing.T, l *testtool.Libvirtd, domain string) *world {
	t.Helper()
	w := &world{t: t, libvirt: l, dir: t.TempDir(), domain: domain, memoryMiB: 32, truth: map[ident.RunID]map[string][]byte{}}
	w.uuid = fmt.Sprintf("00000000-0000-4000-8000-%012x", crc32.ChecksumIEEE([]byte(domain)))
	// A firmware that halts at once leaves the processor to others.
	w.os = "<loader type='rom'>" + filepath.Join(w.dir, "halt.rom") + "</loader>"
	if err := os.WriteFile(filepath.Join(w.dir, "halt.rom"), bytes.Repeat([]byte{0xf4}, 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	w.addDisk("vda", false)
	w.addDisk("vdb", true)
	store, err := dir.Open(filepath.Join(w.dir, "repository"), dir.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if w.repository, _, err = repo.Init(t.Context(), store, repo.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	if w.state, err = state.Open(filepath.Join(w.dir, "state"), state.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = l.Try("destroy", domain)
		_, _ = l.Try("undefine", domain, "--checkpoints-metadata", "--nvram")
	})
	return w
}

// runtimeDir is a folder of the world's own.
func (w *world) runtimeDir() string { return w.libvirt.Dir("run-" + w.uuid[24:]) }

func (w *world) addDisk(target string, iothread bool, more ...string) *testDisk {
	w.t.Helper()
	d := &testDisk{target: target, serial: target, path: filepath.Join(w.dir, target+".qcow2"), iothread: iothread, content: make([]byte, diskBytes)}
	args := append([]string{"create", "-q", "-f", "qcow2"}, more...)
	testtool.Run(w.t, "qemu-img", append(args, d.path, fmt.Sprint(diskBytes))...)
	w.disks = append(w.disks, d)
	return d
}

// define lets libvirt know the domain.
func (w *world) define() {
	w.t.Helper()
	var devices strings.Builder
	for _, d := range w.disks {
		thread, format := "", "qcow2"
		if d.iothread {
			thread = " iothread='1'"
		}
		if d.raw {
			format = "raw"
		}
		if d.volume != "" {
			fmt.Fprintf(&devices, "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='%s' volume='%s'/><target dev='%s' bus='virtio'/></disk>\n", w.domain, d.volume, d.target)
			continue
		}
		fmt.Fprintf(&devices, "<disk type='file' device='disk'><driver name='qemu' type='%s'%s/><source file='%s'/><target dev='%s' bus='virtio'/><serial>%s</serial></disk>\n", format, thread, d.path, d.target, d.serial)
	}
	text := fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>%d</memory><vcpu>1</vcpu><cpu mode='maximum'/><iothreads>1</iothreads>
<os><type arch='x86_64' machine='pc'>hvm</type>%s</os><features><acpi/></features>
<devices><emulator>%s</emulator>%s%s<memballoon model='none'/></devices></domain>`, w.domain, w.uuid, w.memoryMiB, w.os, testtool.Need(w.t, "qemu-system-x86_64"), devices.String(), w.devices)
	path := filepath.Join(w.dir, "domain.xml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.libvirt.Virsh(w.t, "define", path)
}

func (w *world) start() { w.t.Helper(); w.libvirt.Virsh(w.t, "start", w.domain) }

// shutOff ends the domain as a guest would: QEMU saves its bitmaps.
func (w *world) shutOff() { w.t.Helper(); w.libvirt.Virsh(w.t, "destroy", w.domain, "--graceful") }

func (w *world) disk(target string) *testDisk {
	w.t.Helper()
	for _, d := range w.disks {
		if d.target == target {
			return d
		}
	}
	w.t.Fatalf("no disk %s", target)
	return nil
}

// write is a write of the guest.
func (w *world) write(target string, off, n int, pattern byte) {
	w.t.Helper()
	d := w.disk(target)
	number := strings.Index("abcdefgh", target[2:])
	w.io(fmt.Sprintf("/machine/peripheral/virtio-disk%d/virtio-backend", number), fmt.Sprintf("write -P %d %d %d", pattern, off, n))
	copy(d.content[off:off+n], bytes.Repeat([]byte{pattern}, n))
}

func (w *world) io(device, command string) {
	w.t.Helper()
	out := w.libvirt.Virsh(w.t, "qemu-monitor-command", w.domain, "--hmp", fmt.Sprintf("qemu-io -d %s \"%s\"", device, command))
	if out != "" && !strings.HasPrefix(out, "wrote") && !strings.Contains(out, "ops;") {
		w.t.Fatalf("qemu-io %s: %s", command, out)
	}
}

// source is the machine of a backup, of which every cut is remembered.
func (w *world) source(family ident.FamilyID) source.Machine {
	w.family = family
	o := virt.Options{Family: family, Domain: w.domain, URI: w.libvirt.URI, ScratchDir: filepath.Join(w.dir, "scratch"),
		ScratchFloorBytes: 1 << 20, RuntimeDir: w.runtimeDir()}
	o.StartGuard = func(ctx context.Context, id string, actions map[string]guard.Action, cleanup json.RawMessage) (*guard.Guard, error) {
		return startGuard(ctx, filepath.Join(w.dir, "guard"), id, actions, cleanup)
	}
	if w.change != nil {
		w.change(&o)
	}
	return &remembering{virt.New(o), w}
}

type remembering struct {
	source.Machine
	w *world
}

func (r *remembering) Freeze(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	if r.w.inspected != nil {
		r.w.inspected()
	}
	c, err := r.Machine.Freeze(ctx, run, bases)
	if err != nil {
		return nil, err
	}
	r.w.remember(run)
	if r.w.meanwhile != nil {
		r.w.meanwhile()
	}
	return &cut{c, r.w}, nil
}

// remember keeps what the disks hold for the check of a point.
func (w *world) remember(run ident.RunID) {
	w.truth[run] = map[string][]byte{}
	for _, d := range w.disks {
		w.truth[run][d.target] = bytes.Clone(d.content)
	}
}

// cut can do otherwise than it should.
type cut struct {
	source.Cut
	w *world
}

// Consistency is what the agent takes the cut for.
func (c *cut) Consistency() string {
	if known, ok := c.Cut.(source.Consistent); ok {
		return known.Consistency()
	}
	return format.ConsistencyOffline
}

func (c *cut) FreezeSeconds() float64 {
	if known, ok := c.Cut.(source.Consistent); ok {
		return known.FreezeSeconds()
	}
	return 0
}

func (c *cut) Confirm(ctx context.Context) error {
	if c.w.confirm != nil {
		return c.w.confirm(ctx)
	}
	return c.Cut.Confirm(ctx)
}

func (c *cut) Commit(ctx context.Context) error {
	if c.w.leave {
		return c.Cut.Leave(ctx)
	}
	return c.Cut.Commit(ctx)
}

// node is the name of a disk's image in QEMU.
func (w *world) node(target string) string {
	w.t.Helper()
	var answer struct {
		Return []struct {
			Name   string `json:"node-name"`
			Driver string `json:"drv"`
			File   string `json:"file"`
		} `json:"return"`
	}
	out := w.libvirt.Virsh(w.t, "qemu-monitor-command", w.domain, `{"execute":"query-named-block-nodes"}`)
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		w.t.Fatal(err)
	}
	for _, n := range answer.Return {
		if n.Driver == "qcow2" && n.File == w.disk(target).path {
			return n.Name
		}
	}
	w.t.Fatalf("QEMU has no node of %s", target)
	return ""
}

func (w *world) backup() (agent.Summary, error) {
	w.t.Helper()
	name, err := virt.MachineName(w.domain)
	if err != nil {
		w.t.Fatal(err)
	}
	return agent.Backup(w.t.Context(), agent.Job{Machine: name, Repository: w.repository, State: w.state.Repository(w.repository.ID()), Open: w.source},
		agent.Options{Workers: 2, MemoryBytes: 64 << 20})
}

// mustBackup is a backup with these modes.
func (w *world) mustBackup(want ...string) agent.Summary {
	w.t.Helper()
	s, err := w.backup()
	if err != nil {
		w.t.Fatalf("backup: %v\n%s", err, w.libvirt.Log())
	}
	var got []string
	for _, d := range s.Disks {
		text := d.Mode
		if d.Reason != agent.ReasonNone {
			text += ": " + string(d.Reason)
		}
		got = append(got, text)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Fatalf("modes are %q, want %q (%+v)", got, want, s)
	}
	if len(s.NotReset) > 0 || len(s.Alarms) > 0 {
		w.t.Errorf("not reset %+v, alarms %+v", s.NotReset, s.Alarms)
	}
	w.check(s.Point)
	w.wantCheckpoints(s.Point)
	w.wantNothingLeft()
	return s
}

// check compares a point with what its cut held.
func (w *world) check(run ident.RunID) {
	w.t.Helper()
	name, _ := virt.MachineName(w.domain)
	point, err := w.repository.OpenPoint(w.t.Context(), name, run)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range point.Record().Disks {
		disk, err := point.Disk(d.Name)
		if err != nil {
			w.t.Fatal(err)
		}
		got := make([]byte, disk.Size())
		if _, err := disk.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
			w.t.Fatal(err)
		}
		if want := w.truth[run][d.Name]; !bytes.Equal(got, want) {
			w.t.Fatalf("point %s (%s %s): disk %s is not what it was, first at byte %d", run, d.Mode, d.Reason, d.Name, difference(got, want))
		}
	}
}

// extras are the extra files of a point.
func (w *world) extras(run ident.RunID) map[string][]byte {
	w.t.Helper()
	name, _ := virt.MachineName(w.domain)
	point, err := w.repository.OpenPoint(w.t.Context(), name, run)
	if err != nil {
		w.t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range point.Record().Extras.Files {
		r, err := point.Extra(f.Name)
		if err != nil {
			w.t.Fatal(err)
		}
		if files[f.Name], err = io.ReadAll(r); err != nil {
			w.t.Fatal(err)
		}
	}
	return files
}

func difference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// wantCheckpoints demands that libvirt remembers one checkpoint of ours: that of the
// last point.
func (w *world) wantCheckpoints(run ident.RunID, others ...string) {
	w.t.Helper()
	want := append(others, ident.BitmapName{Family: w.family, Stamp: run}.String())
	want = append(want, w.others...)
	slices.Sort(want)
	got := strings.Fields(w.libvirt.Virsh(w.t, "checkpoint-list", w.domain, "--name"))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		w.t.Errorf("checkpoints are\n%q, want\n%q", got, want)
	}
}

// wantNothingLeft demands that no scratch file, socket or job is there.
func (w *world) wantNothingLeft() {
	w.t.Helper()
	for _, folder := range []string{filepath.Join(w.dir, "scratch"), w.runtimeDir()} {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			w.t.Errorf("%s is left in %s", e.Name(), folder)
		}
	}
}

const (
	full        = "full: " + string(agent.ReasonFirst)
	incremental = format.ModeIncremental
)

func rescan(r agent.Reason) string { return format.ModeRescan + ": " + string(r) }
