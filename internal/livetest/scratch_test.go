package livetest

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/testtool"
)

// smallFolder mounts a file system of 64 MiB.
func (h *host) smallFolder(name string) string {
	t := h.t
	t.Helper()
	dir := h.path(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// rewrite overwrites a disk once, several requests at a time, and gives the longest
// time that one took.
func (m *machine) rewrite(disk int, sizeBytes int64, seed uint64) time.Duration {
	m.h.t.Helper()
	const piece, parallel = 1 << 20, 8
	var group sync.WaitGroup
	var mu sync.Mutex
	var longest time.Duration
	for w := range int64(parallel) {
		group.Add(1)
		go func() {
			defer group.Done()
			for off := w * piece; off < sizeBytes; off += parallel * piece {
				o := operation{off: off, len: piece, seed: seed + uint64(off)}
				content := o.fill()
				began := time.Now()
				if _, err := m.files[disk].WriteAt(content, off); err != nil {
					m.h.t.Errorf("the guest got an error: %v", err)
					return
				}
				mu.Lock()
				longest = max(longest, time.Since(began))
				mu.Unlock()
			}
		}()
	}
	group.Wait()
	return longest
}

func TestWithoutScratchSpaceTheBackupGivesUpAndTheGuestGoesOn(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	size := int64(testtool.Count(256, 1024)) * mib
	m := newMachine(h, "vm", size)
	m.rewrite(0, size, 1)
	args := []string{"backup", "--qmp", m.monitor(), "--machine", "vm"}
	h.ok(args...)
	small := append(args, "--rescan", "--scratch-dir", h.smallFolder("small"))
	// The guest overwrites all while everything is read, until the backup ends.
	done := make(chan struct{})
	var longest time.Duration
	var group sync.WaitGroup
	group.Add(1)
	go func() {
		defer group.Done()
		for seed := uint64(2); ; seed++ {
			longest = max(longest, m.rewrite(0, size, seed))
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	_, stderr, code := h.run(small...)
	close(done)
	group.Wait()
	if code != 20 || !strings.Contains(stderr, "no scratch space left") || !strings.Contains(stderr, "--scratch-dir") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	m.checkTidy()
	entries, err := os.ReadDir(h.path("small"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the scratch folder: %v, %v", entries, err)
	}
	if s := h.backup(args[1:]...); modes(s) != "incremental" {
		t.Errorf("the next run says %s", modes(s))
	}
	t.Logf("the longest write of the guest took %v", longest.Round(time.Millisecond))
}

func TestAFolderWithoutSpaceIsRefusedBeforeAnythingIsDone(t *testing.T) {
	needDaemon(t)
	h := newHost(t)
	m := newMachine(h, "vm", 4*mib)
	dir := h.smallFolder("small")
	if err := os.WriteFile(dir+"/other", make([]byte, 30<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := h.run("backup", "--qmp", m.monitor(), "--machine", "vm", "--scratch-dir", dir)
	if code != 20 || !strings.Contains(stderr, "no scratch space left") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if names := m.bitmaps(); len(names) != 0 {
		t.Errorf("bitmaps %v", names)
	}
}
