package scratch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

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

// PlaceFlag is how an operator names another folder for scratch files.
const PlaceFlag = "--scratch-dir"

// Space is the folder for scratch files.
type Space struct {
	dir        string
	floorBytes int64

	mu     sync.Mutex
	images []*os.File // that were made here, also those that have no name any more
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

// Nearly tells whether it is time to give up because of what is left: a quarter of
// the floor or less.
func (s *Space) Nearly(room int64) bool { return room <= s.floorBytes/4 }

// Meter looks at a space again and again. It is used from one goroutine.
type Meter struct {
	space *Space
	room  int64
	at    time.Time
	rate  float64 // bytes a second that were used lately
}

// horizon is how far the meter looks ahead: giving up takes its time, and the guest
// goes on writing meanwhile. The rate of a moment counts less after rateHalfLife.
const (
	horizon      = 500 * time.Millisecond
	rateHalfLife = 200 * time.Millisecond
)

// NewMeter starts to look.
func (s *Space) NewMeter(now time.Time) (*Meter, error) {
	room, err := s.Room()
	return &Meter{space: s, room: room, at: now}, err
}

// Look says how much room there is, and whether it will do: also for as long as it
// takes to give up, should the guest go on like this.
func (m *Meter) Look(now time.Time) (room int64, enough bool, err error) {
	if room, err = m.space.Room(); err != nil {
		return 0, false, err
	}
	if passed := now.Sub(m.at); passed > 0 {
		m.rate *= math.Exp2(-float64(passed) / float64(rateHalfLife))
		m.rate = max(m.rate, float64(m.room-room)/passed.Seconds())
	}
	m.room, m.at = room, now
	return room, !m.space.Nearly(room - int64(m.rate*horizon.Seconds())), nil
}

// lookEvery is how often Guard looks.
const lookEvery = 10 * time.Millisecond

// Guard returns when the room ends, with the error for that, or when also, which is
// called after each look, gives one; and with ctx.
func (s *Space) Guard(ctx context.Context, also func(now time.Time) error) error {
	meter, err := s.NewMeter(time.Now())
	if err != nil {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			room, enough, err := meter.Look(now)
			if err == nil && !enough {
				err = s.Full(room)
			}
			if err == nil {
				err = also(now)
			}
			if err != nil {
				return err
			}
		}
	}
}

// Full is the error for that.
func (s *Space) Full(room int64) error {
	return &source.UsableError{Path: s.dir,
		Err: fmt.Errorf("%w: %s free, and %s of that are left alone", source.ErrScratch,
			humanize.IBytes(uint64(max(room+s.floorBytes, 0))), humanize.IBytes(uint64(s.floorBytes))),
		Hint: "a backup of a running machine keeps there what the guest overwrites meanwhile; free some space, or name a larger place with " + PlaceFlag}
}
