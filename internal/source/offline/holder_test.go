package offline

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/testtool"
)

// program is a running program of QEMU.
type program struct {
	pid   int
	ended chan struct{}
	said  strings.Builder // to be read after the end
}

// startProgram starts a program that ends with the test at the latest.
func startProgram(t testing.TB, args ...string) *program {
	t.Helper()
	p := &program{ended: make(chan struct{})}
	cmd := exec.Command(testtool.Need(t, args[0]), args[1:]...)
	cmd.Stdout, cmd.Stderr = &p.said, &p.said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		// Not SIGTERM: qemu-nbd misses it while it is starting.
		_ = cmd.Process.Kill()
		<-p.ended
	})
	return p
}

const programTimeout = 30 * time.Second

// untilLocked comes back when the byte is locked.
func (p *program) untilLocked(t testing.TB, path string, offset int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	locks := newLockSet(f)
	for end := time.Now().Add(programTimeout); time.Now().Before(end); {
		if conflictAt(t, locks.test(offset)) != 0 {
			return
		}
		select {
		case <-p.ended:
			t.Fatalf("it ended: %s", p.said.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatalf("it does not lock byte %d", offset)
}

// untilRefused comes back when the program has failed because of locks.
func (p *program) untilRefused(t testing.TB) {
	t.Helper()
	select {
	case <-p.ended:
		if !strings.Contains(p.said.String(), "lock") {
			t.Fatalf("it fails without a word of locks: %s", p.said.String())
		}
	case <-time.After(programTimeout):
		t.Fatal("it starts although the image is held")
	}
}

// programs are those that open images in earnest, and how they are started.
func programs(path, folder string) map[string][]string {
	socket := filepath.Join(folder, "socket")
	return map[string][]string{
		"qemu-nbd": {"qemu-nbd", "--persistent", "-f", "qcow2", "-k", socket, path},
		"qemu-storage-daemon": {"qemu-storage-daemon",
			"--blockdev", "driver=file,node-name=f0,filename=" + path, "--blockdev", "driver=qcow2,node-name=d0,file=f0",
			"--nbd-server", "addr.type=unix,addr.path=" + socket, "--export", "type=nbd,id=guest,node-name=d0,name=guest,writable=on"},
		"qemu-system-x86_64": {"qemu-system-x86_64", "-display", "none", "-nodefaults", "-machine", "pc,accel=tcg", "-S", "-name", "guest=web",
			"-drive", "if=virtio,format=qcow2,file=" + path},
	}
}

func TestEveryProgramOfQEMUIsSeenAndNamed(t *testing.T) {
	for name := range programs("", "") {
		t.Run(name, func(t *testing.T) {
			path := withBitmap(t)
			args := programs(path, t.TempDir())[name]
			p := startProgram(t, args...)
			p.untilLocked(t, path, usesWrite)
			err := inspect(t, one(path, Options{})).Disks[0].Err
			var held *source.HeldError
			if !errors.As(err, &held) || !slices.Contains(held.Pids, p.pid) || !strings.Contains(err.Error(), args[0]) {
				t.Errorf("got %v, want holder %d", err, p.pid)
			}
		})
	}
}

func TestEveryProgramOfQEMUMayStartWhileWeReadUnlessWeHold(t *testing.T) {
	for name := range programs("", "") {
		t.Run(name, func(t *testing.T) {
			path := withBitmap(t)
			args := programs(path, t.TempDir())[name]
			held := cutOf(t, one(path, Options{Hold: true}), 2, 1)
			startProgram(t, args...).untilRefused(t)
			if err := held.Confirm(t.Context()); err != nil {
				t.Errorf("confirm after it failed: %v", err)
			}
			if err := held.Abort(t.Context()); err != nil {
				t.Error(err)
			}
			c := cutOf(t, one(path, Options{}), 2, 1)
			startProgram(t, args...).untilLocked(t, path, usesWrite)
			if err := readUntilError(t, c.Disks()[0]); !errors.Is(err, source.ErrVMStarted) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestReadersOfQEMUAreNoHolders(t *testing.T) {
	path := withBitmap(t)
	socket := filepath.Join(t.TempDir(), "socket")
	startProgram(t, "qemu-nbd", "--persistent", "-r", "-f", "qcow2", "-k", socket, path).untilLocked(t, path, deniesWrite)
	inspectGood(t, one(path, Options{}))
	c := cutOf(t, one(path, Options{Hold: true}), 2, 1)
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(t.Context()); !errors.Is(err, source.ErrReaders) {
		t.Errorf("got %v", err)
	}
}
