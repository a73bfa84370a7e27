package virt

import (
	"errors"
	"fmt"
	"os"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
	"github.com/qbackup/qbackup/internal/source/offline"
)

// Why bitmaps of an image cannot be made, or believed.
const (
	whyRaw      = "raw image cannot have bitmaps"
	whyVersion2 = "version 2 image cannot have bitmaps"
	whyEmpty    = "a disk of size 0 cannot have bitmaps"

	problemFrozen   = "it does not record, and libvirt goes on from no such bitmap"
	problemMemory   = "QEMU does not keep it in the image"
	problemBusy     = "a job or an export of QEMU is using it"
	problemNoRecord = "it is not what libvirt takes for a checkpoint"
)

// evidence describes the disks of a domain that runs.
func (r *running) evidence(family ident.FamilyID) ([]source.DiskEvidence, error) {
	var list []source.DiskEvidence
	for i := range r.disks {
		d := &r.disks[i]
		e, err := r.diskEvidence(d, family)
		if err != nil {
			e = source.DiskEvidence{Name: d.target, Path: d.path, Err: err}
		}
		list = append(list, e)
	}
	return list, distinct(list)
}

// diskEvidence describes one of them.
func (r *running) diskEvidence(d *disk, family ident.FamilyID) (source.DiskEvidence, error) {
	e := source.DiskEvidence{Name: d.target, Path: d.path}
	if d.err != nil {
		return e, d.err
	}
	top := r.nodes.top(d)
	if top == nil {
		return e, unusable("disk "+d.target, fmt.Errorf("%w: QEMU shows no image for %s", ErrDisk, d.path), "")
	}
	var err error
	if e.Facts, err = facts.Running(d.path, d.raw()); err != nil {
		return e, unusable("disk "+d.target, err, hintFile(err))
	}
	e.Version, e.SizeBytes = top.version(), top.Image.SizeBytes
	e.BitmapsUsable = e.Version >= 3
	e.BitmapsPossible = e.Version >= 3 && e.SizeBytes > 0
	switch {
	case e.Version == 0:
		e.Why = whyRaw
	case e.Version < 3:
		e.Why = whyVersion2
	case e.SizeBytes == 0:
		e.Why = whyEmpty
	}
	for _, b := range top.Bitmaps {
		if b.Name == "" {
			continue
		}
		one := bitmapEvidence(b, family)
		if one.Ours && e.Facts.GranularityBytes == 0 {
			e.Facts.GranularityBytes = one.GranularityBytes
		}
		e.Bitmaps = append(e.Bitmaps, one)
	}
	for _, layer := range r.nodes.layers(d) {
		if len(layer.family(family)) > 0 {
			e.FamilyInLayers++
		}
	}
	return e, nil
}

// hintFile says what to do about an image that cannot be looked at.
func hintFile(err error) string {
	if errors.Is(err, os.ErrPermission) {
		return "run as a user who may read it"
	}
	return ""
}

func bitmapEvidence(b nodeBitmap, family ident.FamilyID) source.BitmapEvidence {
	e := source.BitmapEvidence{Name: b.Name, Recording: b.Recording, InUse: b.Inconsistent, GranularityBytes: b.GranularityBytes, DirtyBytes: -1}
	if !ours(b.Name, family) {
		return e
	}
	e.Family, _ = ident.ParseBitmapName(b.Name)
	e.Ours = true
	switch {
	case b.Inconsistent:
	case !b.Persistent:
		e.Problem = problemMemory
	case b.Busy:
		e.Problem = problemBusy
	case !b.Recording:
		e.Problem = problemFrozen
	case !b.alive():
		e.Problem = problemNoRecord
	default:
		e.DirtyBytes = b.DirtyBytes
	}
	return e
}

// distinct refuses a machine of which two disks are one file, or one is below the
// other.
func distinct(list []source.DiskEvidence) error {
	type user struct {
		disk string
		format.LayerFacts
	}
	seen := map[[2]uint64]user{}
	for _, e := range list {
		own := map[[2]uint64]bool{}
		for _, l := range e.Facts.Chain {
			id := [2]uint64{l.Device, l.Inode}
			other, known := seen[id]
			if own[id] || known && l.Role == facts.RoleBacking && other.Role == facts.RoleBacking {
				continue
			}
			if known {
				return unusable(e.Path, fmt.Errorf("%w: %s of disk %s is %s of disk %s", offline.ErrSameFile, l.Path, e.Name, other.Path, other.disk),
					"give each disk of the domain an image of its own")
			}
			own[id] = true
			seen[id] = user{e.Name, l}
		}
	}
	return nil
}

// extras are the definition and the variables of the firmware.
func (d *domain) extras() ([]source.Extra, error) {
	list := []source.Extra{{Name: ExtraDefinition, Data: []byte(d.definition)}}
	if d.nvram == "" {
		return list, nil
	}
	variables, err := readVariables(d.nvram)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return list, nil // the firmware has not run yet
	case err != nil:
		return nil, unusable(d.nvram, err, hintFile(err))
	}
	return append(list, source.Extra{Name: ExtraVariables, Data: variables}), nil
}

// Names of the extra files of a point.
const (
	// ExtraDefinition is the domain's definition for `virsh define`, without secrets.
	ExtraDefinition = "domain.xml"
	// ExtraVariables is what the firmware keeps, the file that the definition calls
	// nvram.
	ExtraVariables = "nvram.fd"
)

// readVariables reads the firmware's variables, which QEMU may be writing to, until
// two looks see the same. The firmware writes when a guest asks it to, and rarely.
func readVariables(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > variablesMax {
		return nil, fmt.Errorf("%s: %d bytes, or no regular file: these are no variables of a firmware", path, info.Size())
	}
	last, err := os.ReadFile(path)
	for range variablesLooks {
		if err != nil {
			return nil, err
		}
		var again []byte
		if again, err = os.ReadFile(path); err == nil && string(again) == string(last) {
			return again, nil
		}
		last = again
	}
	return last, err
}

const (
	variablesMax   = 8 << 20
	variablesLooks = 10
)
