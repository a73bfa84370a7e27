package scratch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

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

func TestAMeterGivesUpInTime(t *testing.T) {
	s, err := Open(small(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	m, err := s.NewMeter(now)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(s.Dir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// use lets the guest use some space in some time.
	use := func(bytes int64, in time.Duration) bool {
		t.Helper()
		if _, err := f.Write(make([]byte, bytes)); err != nil {
			t.Fatal(err)
		}
		now = now.Add(in)
		_, enough, err := m.Look(now)
		if err != nil {
			t.Fatal(err)
		}
		return enough
	}
	if !use(0, 10*time.Millisecond) || !use(4<<20, time.Second) {
		t.Error("32 MiB of room, and 4 MiB used in a second: it gives up")
	}
	if use(1<<20, 10*time.Millisecond) {
		t.Error("27 MiB of room, and 100 MiB used in a second: it goes on")
	}
	if use(0, 10*time.Millisecond) {
		t.Error("a moment without writes is no reason to go on")
	}
	if !use(0, 2*time.Second) {
		t.Error("it never forgets")
	}
	if use(20<<20, time.Hour) {
		t.Error("7 MiB of room: it goes on")
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
	if _, err := s.NewMeter(time.Now()); err == nil {
		t.Error("a folder that is not there is looked at")
	}
	if _, _, err := (&Meter{space: s}).Look(time.Now()); err == nil {
		t.Error("a folder that is gone has room")
	}
	if _, err := s.Room(); err == nil {
		t.Error("a folder that is not there has room")
	}
}
