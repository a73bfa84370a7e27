package scratch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/source"
)

// small mounts a file system of 64 MiB, which only root may do.
func small(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m")
	if errors.Is(err, unix.EPERM) && os.Getenv("QBACKUP_REQUIRE_TOOLS") != "1" {
		t.Skip("only root can mount a file system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestTheRoomEndsAboveTheFloor(t *testing.T) {
	dir := small(t)
	s, err := Open(filepath.Join(dir, "scratch"), 0)
	if err != nil {
		t.Fatal(err)
	}
	room, err := s.Room()
	if err != nil || room > 32<<20 || room < 31<<20 || s.Nearly(room) {
		t.Fatalf("room is %d, %v", room, err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), "f"), make([]byte, 25<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if room, err = s.Room(); err != nil || !s.Nearly(room) || room < 6<<20 {
		t.Errorf("room is %d, %v", room, err)
	}
	_, err = Open(s.Dir(), 0)
	if !errors.Is(err, source.ErrScratch) || !errors.Is(err, source.ErrUnusable) {
		t.Errorf("a folder without room: %v", err)
	}
	if _, err := Open(s.Dir(), 1<<20); err != nil {
		t.Errorf("with a lower floor: %v", err)
	}
}

func TestAFolderThatCannotBeMadeIsSaid(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "scratch"), 0); err == nil || errors.Is(err, source.ErrScratch) {
		t.Errorf("%v", err)
	}
	s := &Space{dir: filepath.Join(file, "none")}
	if _, err := s.Room(); err == nil {
		t.Error("a folder that is not there has room")
	}
}
