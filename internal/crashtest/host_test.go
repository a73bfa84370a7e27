package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/guest"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/offline"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	machine = ident.MachineName("web")
	// The devices of a log, beside the disks' names.
	repoDevice  = "repository"
	stateDevice = "state"
	// diskBytes is not a multiple of a block.
	diskBytes  = 4<<20 + 37<<10
	blockBytes = format.DefaultBlockBytes
)

// host is a machine that is switched off, a repository in a folder, and the state
// directory of the host that backs it up.
type host struct {
	disks      []*disk
	repository string
	state      string
	clock      time.Time
	random     *rand.ChaCha8
	truth      map[ident.RunID][][]byte // what the disks held, by disk
	report     error                    // of the state directory
	buffer     []byte                   // as long as a disk
}

// disk is one image, and what a guest reads from it.
type disk struct {
	name, path string
	content    []byte
}

// quickFolder is a folder in memory where there is one with room: a run syncs its
// state directory a few times, and each judged state is written anew.
func quickFolder(t testing.TB) string {
	t.Helper()
	const room = 256 << 20
	var s unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &s); err != nil || int64(s.Bavail)*int64(s.Bsize) < room {
		return t.TempDir()
	}
	root, err := os.MkdirTemp("/dev/shm", "qbackup-crashtest-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	return root
}

// newHost makes the images with QEMU's tools, each with some data and holes.
func newHost(t testing.TB, disks int, options ...string) *host {
	t.Helper()
	root := quickFolder(t)
	h := &host{
		repository: filepath.Join(root, "repository"), state: filepath.Join(root, "state"),
		clock:  time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		random: rand.NewChaCha8([32]byte{byte(len(t.Name())), 9}), truth: map[ident.RunID][][]byte{}, buffer: make([]byte, diskBytes),
	}
	for i := range disks {
		d := &disk{name: fmt.Sprintf("vd%c", 'a'+i), content: make([]byte, diskBytes)}
		d.path = filepath.Join(root, d.name+".qcow2")
		args := []string{"create", "-q", "-f", "qcow2"}
		if len(options) > 0 {
			args = append(args, "-o", strings.Join(options, ","))
		}
		testtool.Run(t, "qemu-img", append(args, d.path, fmt.Sprint(diskBytes))...)
		h.disks = append(h.disks, d)
		h.mustWrite(t, i, change{off: 0, n: 300 << 10}, change{off: 1 << 20, n: 700 << 10}, change{off: 3000 << 10, n: 130 << 10}, change{off: 4 << 20, n: 37 << 10})
	}
	if err := os.Mkdir(h.repository, 0o700); err != nil {
		t.Fatal(err)
	}
	return h
}

// change is something that a guest does to a disk.
type change struct {
	verb   string // "write", which is "", or "zero", "discard"
	off, n int64
	ends   bool // the guest's host dies after it, with the image open
}

// qemuIO returns the command, with a pattern that no write before it had at the
// same place, most likely.
func (c change) qemuIO(pattern byte) string {
	switch c.verb {
	case "discard":
		return fmt.Sprintf("discard %d %d", c.off, c.n)
	case "zero":
		return fmt.Sprintf("write -z %d %d", c.off, c.n)
	}
	return fmt.Sprintf("write -P %d %d %d", pattern, c.off, c.n)
}

// write does changes to a disk through QEMU, as a guest would.
func (h *host) write(t testing.TB, disk int, changes ...change) error {
	d := h.disks[disk]
	args := []string{"-f", "qcow2", "-d", "unmap"}
	dies := false
	for _, c := range changes {
		args = append(args, "-c", c.qemuIO(h.expect(d, c)))
		if c.ends {
			args, dies = append(args, "-c", "flush", "-c", "abort"), true
		}
	}
	out, code := testtool.Try(t, "qemu-io", append(args, d.path)...)
	if !dies && (code != 0 || strings.Contains(out, "rror") || strings.Contains(out, "failed")) || dies && code == 0 {
		return fmt.Errorf("QEMU writes to %s: exit %d: %s", d.name, code, out)
	}
	return nil
}

// expect notes what a change will leave of a disk, and returns the byte that is
// written.
func (h *host) expect(d *disk, c change) byte {
	pattern := byte(1 + h.random.Uint64()%255)
	if c.verb != "" {
		pattern = 0
	}
	for i := c.off; i < c.off+c.n; i++ {
		d.content[i] = pattern
	}
	return pattern
}

// play does writes to a disk as a guest would, without QEMU.
func (h *host) play(disk int, changes ...change) error {
	d := h.disks[disk]
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := guest.Open(hasty{qcow2.NewOSFile(f)})
	if err != nil {
		return err
	}
	for _, c := range changes {
		if _, err := g.WriteAt(bytes.Repeat([]byte{h.expect(d, c)}, int(c.n)), c.off); err != nil {
			return err
		}
	}
	return g.Close()
}

// mustWrite is write, and a look with QEMU whether the disk holds what is expected
// from then on.
func (h *host) mustWrite(t testing.TB, disk int, changes ...change) {
	t.Helper()
	if err := h.write(t, disk, changes...); err != nil {
		t.Fatal(err)
	}
	d := h.disks[disk]
	raw := filepath.Join(t.TempDir(), "raw")
	testtool.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", d.path, raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if i := firstDifference(got, d.content); i >= 0 {
		t.Fatalf("QEMU reads %s otherwise than expected, first at byte %d", d.name, i)
	}
}

func firstDifference(got, want []byte) int {
	if bytes.Equal(got, want) {
		return -1
	}
	n := min(len(got), len(want))
	for i := range n {
		if got[i] != want[i] {
			return i
		}
	}
	return n
}

// how a backup is run.
type how struct {
	boot   string
	rescan bool
	adopt  bool
	log    *sim.Log // nil: not recorded
}

// open opens the repository, and makes it when it is not there.
func (h *host) open(ctx context.Context, fs dir.FS) (*repo.Repository, error) {
	s, err := dir.Open(h.repository, dir.Options{FS: fs})
	if err != nil {
		return nil, err
	}
	cache, err := repo.OpenIndexCache(filepath.Join(h.state, "cache"), repo.DefaultIndexCacheBytes)
	if err != nil {
		return nil, err
	}
	o := repo.Options{Clock: func() time.Time { return h.clock }, Random: h.random, Cache: cache}
	r, _, err := repo.Init(ctx, s, repo.InitOptions{Options: o})
	return r, err
}

// backup makes a point, a minute after whatever was before.
func (h *host) backup(ctx context.Context, how how) (agent.Summary, error) {
	h.clock = h.clock.Add(time.Minute)
	var fs dir.FS = sim.NoSync{}
	if how.log != nil {
		recording, err := how.log.Folder(repoDevice, h.repository, fs)
		if err != nil {
			return agent.Summary{}, err
		}
		fs = recording
	}
	r, err := h.open(ctx, fs)
	if err != nil {
		return agent.Summary{}, err
	}
	st, err := state.Open(h.state, state.Options{Report: func(err error) { h.report = err }})
	if err != nil {
		return agent.Summary{}, err
	}
	job := agent.Job{Machine: machine, Repository: r, State: st.Repository(r.ID()), Rescan: how.rescan, Adopt: how.adopt,
		Open: func(family ident.FamilyID) source.Machine { return h.machine(family, how.log) }}
	s, err := agent.Backup(ctx, job, agent.Options{
		Clock: func() time.Time { return h.clock }, Random: h.random, Host: "host", BootID: how.boot, Workers: 2, MemoryBytes: 64 << 20,
	})
	if !s.Point.IsZero() {
		h.truth[s.Point] = nil
		for _, d := range h.disks {
			h.truth[s.Point] = append(h.truth[s.Point], bytes.Clone(d.content))
		}
	}
	return s, errors.Join(err, h.report)
}

// machine is the source of a backup. Its images are synced for the log only.
func (h *host) machine(family ident.FamilyID, log *sim.Log) source.Machine {
	var images []offline.Image
	names := map[string]string{}
	for _, d := range h.disks {
		images = append(images, offline.Image{Name: d.name, Path: d.path})
		names[d.path] = d.name
	}
	return offline.New(images, offline.Options{Family: family, OpenFile: func(path string, flags int) (*os.File, qcow2.File, error) {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			return nil, nil, err
		}
		var file qcow2.File = hasty{qcow2.NewOSFile(f)}
		if log != nil {
			file = log.File(names[path], file)
		}
		return f, file, nil
	}})
}

// hasty is a file that is not synced.
type hasty struct{ qcow2.File }

func (hasty) Sync() error { return nil }

func (h *host) mustBackup(t testing.TB, how how) agent.Summary {
	t.Helper()
	s, err := h.backup(t.Context(), how)
	if err != nil {
		t.Fatalf("backup: %v", err)
	}
	return s
}

// record makes a point and returns its effects.
func (h *host) record(t testing.TB, rescan bool) (*sim.Log, agent.Summary) {
	t.Helper()
	log := sim.NewLog()
	for _, d := range h.disks {
		b, err := os.ReadFile(d.path)
		if err != nil {
			t.Fatal(err)
		}
		log.Image(d.name, b)
	}
	if err := log.Watch(stateDevice, h.state); err != nil {
		t.Fatal(err)
	}
	s := h.mustBackup(t, how{boot: "boot-1", rescan: rescan, log: log})
	if err := log.Look(); err != nil {
		t.Fatal(err)
	}
	return log, s
}

// put makes the host what it is after a power failure. Images keep their inodes.
func (h *host) put(s sim.State, keepState bool) error {
	for _, d := range h.disks {
		if err := os.WriteFile(d.path, s.Images[d.name], 0o600); err != nil {
			return err
		}
	}
	for _, folder := range []string{h.repository, h.state} {
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
	}
	if keepState {
		if err := s.Folders[stateDevice].Write(h.state); err != nil {
			return err
		}
	}
	return s.Folders[repoDevice].Write(h.repository)
}

// fork is the host for one judgement: what it learns is not remembered.
func (h *host) fork(seed uint64) *host {
	f := *h
	f.clock, f.truth, f.report = h.clock.Add(time.Hour), maps.Clone(h.truth), nil
	f.random = rand.NewChaCha8([32]byte{1, byte(seed), byte(seed >> 8), byte(seed >> 16)})
	f.disks = nil
	for _, d := range h.disks {
		f.disks = append(f.disks, &disk{d.name, d.path, bytes.Clone(d.content)})
	}
	return &f
}

// checkPoints reads points of the repository and compares them with what the disks
// held, those given or all, and returns which points there are.
func (h *host) checkPoints(ctx context.Context, only ...ident.RunID) ([]ident.RunID, error) {
	s, err := dir.Open(h.repository, dir.Options{FS: sim.NoSync{}})
	if err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, s, repo.Options{})
	if errors.Is(err, repo.ErrNoRepository) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	points, err := r.Points(ctx, machine)
	if err != nil {
		return nil, err
	}
	var runs []ident.RunID
	for _, info := range points {
		runs = append(runs, info.Run)
		if len(only) > 0 && !slices.Contains(only, info.Run) {
			continue
		}
		if err := h.checkPoint(ctx, r, info); err != nil {
			return nil, fmt.Errorf("point %s: %w", info.Run, err)
		}
	}
	return runs, nil
}

func (h *host) checkPoint(ctx context.Context, r *repo.Repository, info repo.PointInfo) error {
	want, known := h.truth[info.Run]
	switch {
	case info.Err != nil:
		return info.Err
	case !known:
		return errors.New("nobody made it")
	case len(info.Record.Disks) != len(h.disks):
		return fmt.Errorf("it has %d disks", len(info.Record.Disks))
	}
	point, err := r.OpenPoint(ctx, machine, info.Run)
	if err != nil {
		return err
	}
	for i, d := range h.disks {
		disk, err := point.Disk(d.name)
		if err != nil {
			return err
		}
		if disk.Size() != int64(len(want[i])) {
			return fmt.Errorf("disk %s has %d bytes", d.name, disk.Size())
		}
		got := h.buffer
		if n, err := disk.ReadAt(got, 0); n != len(got) || err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("disk %s: %d bytes, %w", d.name, n, err)
		}
		if at := firstDifference(got, want[i]); at >= 0 {
			return fmt.Errorf("disk %s is WRONG, first at byte %d", d.name, at)
		}
	}
	return nil
}

// openable reads an image as an editor does, and all its bitmaps.
func openable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	file := qcow2.NewOSFile(f)
	if _, err := qcow2.OpenEditor(file); err != nil {
		return err
	}
	m, err := qcow2.OpenImage(file, qcow2.ImageOptions{})
	if err != nil || !m.Header().BitmapsValid() {
		return err
	}
	list, err := m.Bitmaps()
	for _, b := range list {
		if err == nil {
			_, err = m.BitmapTable(b)
		}
	}
	return err
}
