package source

import (
	"context"
	"io"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// Machine is the disks that are backed up as one.
type Machine interface {
	// Inspect looks at every disk without reading guest data. What is wrong
	// with one disk is told in its evidence; an error means that the machine
	// as a whole cannot be looked at, or that ctx was cancelled. It may be
	// repeated, and holds nothing afterwards.
	Inspect(ctx context.Context) (Evidence, error)
	// Freeze sets the point in time of run for the disks that bases names, in
	// that order. A disk that bases does not name is left alone. The disks
	// must still be as the last Inspect found them, else it is ErrChanged.
	// With an error nothing is held and nothing was written.
	Freeze(ctx context.Context, run ident.RunID, bases []Base) (Cut, error)
}

// Cut is a machine's disks at one instant. It ends in exactly one of Commit and
// Abort.
type Cut interface {
	// Disks gives the disks in the order of the bases.
	Disks() []Disk
	// Confirm makes sure that the disks still are what was read, and holds
	// them from here on, so that nobody can write to them before Commit or
	// Abort. It is called once, after the last read and before the point is
	// published. After an error only Abort is left.
	Confirm(ctx context.Context) error
	// Commit forgets the bits that the point of this run replaces, and starts
	// a family where there was none. It is called only after the point was
	// read back from the repository (I2). It returns a *NotReset when the
	// bits of some disk had to stay; the point stands then too. It goes on
	// when ctx is cancelled, because half a reset helps nobody.
	Commit(ctx context.Context) error
	// Abort ends the cut of a run that is known to have no point, and loses
	// nothing: all bits stay. It may be repeated, and after Commit or Leave does
	// nothing.
	Abort(ctx context.Context) error
	// Leave ends the cut when nobody knows whether the run has a point (I7): what
	// the machine records stays as the cut has set it, and the next run, which can
	// ask the repository, goes on from there. It may be repeated, and after Commit
	// or Abort does nothing.
	Leave(ctx context.Context) error
}

// Consistent is a Cut that knows more of its instant than that no one had the
// disks open.
type Consistent interface {
	// Consistency is a word of the record: format.ConsistencyCrash or Frozen.
	Consistency() string
	// FreezeSeconds is how long the guest's file systems were frozen; 0: they were
	// not.
	FreezeSeconds() float64
}

// Scratched is a Cut that keeps what the guest overwrites.
type Scratched interface {
	// ScratchBytes is how much space that takes. It may be called at any time, also in parallel.
	ScratchBytes() int64
}

// Disk is one disk of a cut. All methods may be called in parallel.
type Disk interface {
	// ReadAt reads what the guest had at the instant of the cut. It is never
	// short without an error: io.EOF at the end of the disk, ErrVMStarted when
	// somebody began to write to the image. The caller owns p.
	io.ReaderAt
	// Name is the disk's name in its machine.
	Name() string
	// Size is the virtual size in bytes.
	Size() int64
	// DirtyBytes is how many bytes the bitmaps and Base.Extra name, counted
	// once each, at the granularity of the bitmaps; -1 for a disk that is read
	// as a whole.
	DirtyBytes() int64
	// Extents gives the ranges to back up: what is dirty for an incremental,
	// all of [0, Size()) for a rescan. Ranges that read as zero are marked and
	// never left out (I5). Ranges end where bitmaps and clusters say; a caller
	// that works in blocks widens them. It may be called again, and then
	// gives the same.
	Extents(ctx context.Context) extent.Seq
}

// Watched is a Disk of a machine that runs: what its image looked like is known
// exactly only after the point in time. What the facts show that Inspect did not
// see has a bit in the bitmap that the cut began.
type Watched interface {
	Facts() format.ImageFacts
}

// Base tells Freeze what to do with one disk.
type Base struct {
	// Disk is the disk's name.
	Disk string
	// Run is the run that the increment continues; zero: the disk is read as a
	// whole.
	Run ident.RunID
	// Family is the machine's family. Bitmaps of other families are no
	// concern of this run, and are not touched.
	Family ident.FamilyID
	// Extra are ranges that are dirty for other reasons than a bitmap, such as
	// the tail of a disk that has grown. Ascending.
	Extra []extent.Extent
	// AddFamily makes Commit start recording in an image in which none of our
	// bitmaps can be used. Without it such an image stays as it is.
	AddFamily bool
}
