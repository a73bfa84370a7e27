package source

import (
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// Evidence is what Inspect found, in the order of the machine's disks.
type Evidence struct {
	Disks []DiskEvidence
	// QEMU is the version of the QEMU that runs the machine; empty: it is off.
	QEMU string
	// Extras are small files that belong to the machine and to no disk, such as
	// its definition. They are stored with the point as they are.
	Extras []Extra
}

// Extra is one such file.
type Extra struct {
	Name string // of the form of a disk's name
	Data []byte
}

// Disk gives the evidence of a disk by name, nil when there is none.
func (e Evidence) Disk(name string) *DiskEvidence {
	for i := range e.Disks {
		if e.Disks[i].Name == name {
			return &e.Disks[i]
		}
	}
	return nil
}

// DiskEvidence is what one disk looks like.
type DiskEvidence struct {
	Name string
	// Path is where the image lies, as it was given.
	Path string
	// Err says why this disk cannot be backed up at all; nil: it can. With an
	// error only Name and Path mean anything.
	Err error
	// Version is that of the qcow2 format, 2 or 3; 0: the image is raw.
	Version int
	// SizeBytes is the virtual size.
	SizeBytes int64
	// Facts is what a record keeps of the image.
	Facts format.ImageFacts
	// Bitmaps are all bitmaps of the image, ours and those of others.
	Bitmaps []BitmapEvidence
	// BitmapsUsable says that bitmaps of this image may be believed at all. Why
	// says in a few words why not, or why none can be made. Each bitmap may still
	// be unusable for itself.
	BitmapsUsable bool
	Why           string
	// BitmapsPossible says that Commit can start a family in this image.
	BitmapsPossible bool
	// FamilyInLayers is how many layers of the chain hold bitmaps with our
	// family's names; more than one means that somebody put an image on top of
	// ours, or copied one.
	FamilyInLayers int
}

// BitmapEvidence is one bitmap of an image.
type BitmapEvidence struct {
	Name string
	// Family is what the name says; it means something only with Ours.
	Family ident.BitmapName
	// Ours says that the name has our form and the machine's family.
	Ours bool
	// Recording says that writers must record into it.
	Recording bool
	// InUse says that it was not saved properly and must not be believed.
	InUse bool
	// Problem says in a few words why the bits cannot be believed, other than
	// InUse; empty: nothing is known against them.
	Problem          string
	GranularityBytes int64
	// DirtyBytes is the number of set bits times the granularity; -1 when it
	// was not counted, because the bitmap is not ours or cannot be believed.
	DirtyBytes int64
}

// Usable says that the bitmap's bits may be believed, in an image whose bitmaps
// are usable.
func (b BitmapEvidence) Usable() bool { return b.Ours && !b.InUse && b.Problem == "" }
