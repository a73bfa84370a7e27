package scratch

import (
	"errors"
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/source"
)

const (
	// floorShare of a file system is left free, but not less than floorMin, which
	// is what guests may have under way when the room ends, nor more than floorMax.
	floorShare = 20
	floorMin   = 32 << 20
	floorMax   = 1 << 30
)

// Space is the folder for scratch files.
type Space struct {
	dir        string
	floorBytes int64
}

// Open makes the folder when needed. floorBytes is what must stay free in its file
// system; 0 stands for a twentieth of it, from 32 MiB to 1 GiB. A folder that has
// no room is refused with source.ErrScratch.
func Open(dir string, floorBytes int64) (*Space, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the folder for scratch files: %w", err)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return nil, fmt.Errorf("look at the space in %s: %w", dir, err)
	}
	if floorBytes == 0 {
		floorBytes = min(max(int64(stat.Blocks)*int64(stat.Bsize)/floorShare, floorMin), floorMax)
	}
	s := &Space{dir: dir, floorBytes: floorBytes}
	room, err := s.Room()
	if err == nil && s.Nearly(room) {
		err = s.Full(room)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Dir is the folder.
func (s *Space) Dir() string { return s.dir }

// Room is how many bytes may be written until the floor is reached; negative
// beyond it.
func (s *Space) Room() (int64, error) {
	var stat unix.Statfs_t
	err := unix.Statfs(s.dir, &stat)
	for errors.Is(err, unix.EINTR) {
		err = unix.Statfs(s.dir, &stat)
	}
	if err != nil {
		return 0, fmt.Errorf("look at the space in %s: %w", s.dir, err)
	}
	return int64(stat.Bavail)*int64(stat.Bsize) - s.floorBytes, nil
}

// Nearly tells whether it is time to give up: what is left above the floor is a
// quarter of the floor or less.
func (s *Space) Nearly(room int64) bool { return room <= s.floorBytes/4 }

// Full is the error for that.
func (s *Space) Full(room int64) error {
	return &source.UsableError{Path: s.dir,
		Err: fmt.Errorf("%w: %s free, and %s of that are left alone", source.ErrScratch,
			humanize.IBytes(uint64(max(room+s.floorBytes, 0))), humanize.IBytes(uint64(s.floorBytes))),
		Hint: "a backup of a running machine keeps there what the guest overwrites meanwhile; free some space, or name a larger place with --scratch-dir"}
}
