package repo

import (
	"errors"
	"fmt"
	"strings"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

var (
	// ErrNoRepository: there is no repository at that place.
	ErrNoRepository = errors.New("no repository there")
	// ErrFormat: what is there is not a repository of qbackup, or of a version that
	// this program does not know.
	ErrFormat = errors.New("not a repository that this qbackup can use")
	// ErrNoPoint: the run has no point. ErrAborted and ErrForgotten say more.
	ErrNoPoint = errors.New("no such point")
	// ErrNoDisk: the point does not have that disk, or could not capture it.
	ErrNoDisk = errors.New("disk is not in the point")
	// ErrNoExtra: the point has no such extra file.
	ErrNoExtra = errors.New("extra file is not in the point")
	// ErrRange: bytes were asked for that do not lie on the disk.
	ErrRange = errors.New("range does not lie on the disk")
	// ErrAborted: the run's slot holds an ABORT or the record of somebody else; it
	// will never be a point of this run.
	ErrAborted = errors.New("run was aborted")
	// ErrForgotten: the run has a tombstone.
	ErrForgotten = errors.New("point was forgotten")
	// ErrUnknownOutcome: whether the point exists cannot be told now. Nothing may be
	// concluded from it; a later look at the slot decides.
	ErrUnknownOutcome = errors.New("outcome of the run is unknown")
	// ErrConflict: a key of this run holds bytes that the run did not write.
	ErrConflict = errors.New("another writer uses the keys of this run")
	// ErrIncomplete: the store does not list what it confirmed to have stored.
	ErrIncomplete = errors.New("store does not list what it took")
	// ErrDamaged: an object is missing or its bytes are not what they must be. The
	// error is a *Damage.
	ErrDamaged = errors.New("repository is damaged")
)

// Damage is a place in the repository that cannot be what it must be. It is
// ErrDamaged and its cause.
type Damage struct {
	Key            string
	Offset, Length int64           // in the object; Offset -1: the object as a whole
	Disk           string          // whose data is lost, "" when that is not known here
	Extents        []extent.Extent // of Disk, in bytes, ascending
	Err            error
}

func (d *Damage) Error() string {
	var b strings.Builder
	b.WriteString(d.Key)
	if d.Offset >= 0 {
		fmt.Fprintf(&b, " at bytes %d+%d", d.Offset, d.Length)
	}
	fmt.Fprintf(&b, ": %v: %v", ErrDamaged, d.Err)
	if len(d.Extents) > 0 {
		fmt.Fprintf(&b, " (disk %s:", d.Disk)
		for i, e := range d.Extents {
			if i == 4 {
				fmt.Fprintf(&b, " and %d more ranges", len(d.Extents)-i)
				break
			}
			fmt.Fprintf(&b, " bytes %d+%d", e.Off, e.Len)
		}
		b.WriteString(")")
	}
	return b.String()
}

// Unwrap finds ErrDamaged and the cause.
func (d *Damage) Unwrap() []error { return []error{ErrDamaged, d.Err} }

// BaseForgottenError says that a base of a run was forgotten before the run had
// announced that it needs it. The run is aborted; begin another without that base.
type BaseForgottenError struct {
	Run   ident.RunID // the base
	Disks []string    // that build on it
}

func (e *BaseForgottenError) Error() string {
	return fmt.Sprintf("base %s of %s: %v", e.Run, strings.Join(e.Disks, ", "), ErrForgotten)
}

// Unwrap gives ErrForgotten.
func (e *BaseForgottenError) Unwrap() error { return ErrForgotten }

// judge gives an error its class: damage when the object is missing or wrong,
// ErrFormat when it is of a later version, else what it was: a store that cannot
// be asked is not damaged.
func judge(key string, err error) error { return judgeAt(key, -1, 0, err) }

func judgeAt(key string, offset, length int64, err error) error {
	var known *Damage
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.Is(err, format.ErrUnsupported):
		return fmt.Errorf("%s: %w: %w", key, ErrFormat, err)
	case isDamage(err):
		return &Damage{Key: key, Offset: offset, Length: length, Err: err}
	}
	return fmt.Errorf("read %s: %w", key, err)
}

func isDamage(err error) bool {
	for _, class := range []error{format.ErrCorrupt, format.ErrMisplaced, format.ErrInvalid, store.ErrNotFound, store.ErrRange, store.ErrCorrupt} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}
