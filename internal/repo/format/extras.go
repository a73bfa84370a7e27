package format

import (
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
)

// Extras are small files that belong to a machine and to no disk, such as its
// definition. They lie in a space of their own, mapped like a disk: one after the
// other in their order, each from the start of a block on.
type Extras struct {
	Files []ExtraFile `json:"files"`
	Map   MapRoot     `json:"map"`
}

// ExtraFile is one of them.
type ExtraFile struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// SizeBytes is the length of the space: up to the last byte of the last file.
func (e *Extras) SizeBytes(blockBytes int64) int64 {
	if e == nil || len(e.Files) == 0 {
		return 0
	}
	last := len(e.Files) - 1
	return e.Offset(last, blockBytes) + e.Files[last].Bytes
}

// Offset is where file i begins in the space.
func (e *Extras) Offset(i int, blockBytes int64) int64 {
	var off int64
	for _, f := range e.Files[:i] {
		off += Blocks(f.Bytes, blockBytes) * blockBytes
	}
	return off
}

// validate accepts nil: a point without extras.
func (e *Extras) validate(blockBytes int64) error {
	if e == nil {
		return nil
	}
	if len(e.Files) == 0 || len(e.Files) > MaxExtras {
		return corrupt("record", -1, "%d extra files", len(e.Files))
	}
	names := map[string]bool{}
	for _, f := range e.Files {
		if ident.CheckDiskName(f.Name) != nil || names[f.Name] || f.Bytes < 0 || f.Bytes > MaxExtrasBytes {
			return corrupt("record", -1, "extra file %.40q has a bad name, is there twice, or has a bad length of %d bytes", f.Name, f.Bytes)
		}
		names[f.Name] = true
	}
	size := e.SizeBytes(blockBytes)
	if size > MaxExtrasBytes {
		return corrupt("record", -1, "extra files of %d bytes together", size)
	}
	if err := e.Map.validate(Blocks(size, blockBytes)); err != nil {
		return fmt.Errorf("check the extra files of the record: %w", err)
	}
	return nil
}

// extrasName stands for the extras where disks are named. No disk can be called so.
const extrasName = "(extras)"

// Mapped gives everything of the record that has a map: the disks that were
// captured, and the extras in the form of a disk.
func (r *Record) Mapped() []*DiskRecord {
	var all []*DiskRecord
	for i := range r.Disks {
		if r.Disks[i].Mode != ModeMissing {
			all = append(all, &r.Disks[i])
		}
	}
	if r.Extras != nil {
		all = append(all, &DiskRecord{
			Name: extrasName, Ordinal: ExtrasOrdinal, Mode: ModeFull, SizeBytes: r.Extras.SizeBytes(r.BlockBytes), Map: r.Extras.Map,
		})
	}
	return all
}
