package offline

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
)

// Why bitmaps of an image cannot be believed, or made.
const (
	whyRaw       = "raw image cannot have bitmaps"
	whyVersion2  = "version 2 image cannot have bitmaps"
	whyEmpty     = "a disk of size 0 cannot have bitmaps"
	whyAutoclear = "autoclear bit unset: a program that does not know bitmaps has written to the image"
)

// evidence describes an opened disk.
func (m *image) evidence(ctx context.Context, family ident.FamilyID, p print) (source.DiskEvidence, error) {
	e := source.DiskEvidence{Name: m.spec.Name, Path: m.spec.Path, SizeBytes: m.disk.Size(), FamilyInLayers: m.layers}
	e.Facts = m.facts(p)
	switch {
	case m.header == nil:
		e.Why = whyRaw
		return e, nil
	case m.header.Version < 3:
		e.Version, e.Why = int(m.header.Version), whyVersion2
		return e, nil
	}
	e.Version = int(m.header.Version)
	_, err := qcow2.OpenEditor(m.top().io)
	e.BitmapsPossible = err == nil && m.disk.Size() > 0
	e.BitmapsUsable = true
	switch {
	case err != nil:
		e.Why = "none can be made: " + err.Error()
	case !e.BitmapsPossible:
		e.Why = whyEmpty
	}
	if m.header.Bitmaps != nil && !m.header.BitmapsValid() {
		e.BitmapsUsable, e.Why = false, whyAutoclear
	}
	for _, b := range m.bitmaps {
		one := source.BitmapEvidence{Name: b.Name, Recording: b.Enabled && !b.InUse, InUse: b.InUse, GranularityBytes: b.GranularityBytes, DirtyBytes: -1}
		if name, ok := ident.ParseBitmapName(b.Name); ok && name.Family == family {
			one.Family, one.Ours = name, true
		}
		e.Bitmaps = append(e.Bitmaps, one)
	}
	return e, m.countDirty(ctx, &e)
}

// countDirty fills in how much each of our bitmaps has marked.
func (m *image) countDirty(ctx context.Context, e *source.DiskEvidence) error {
	counted := map[string]int64{}
	for _, b := range m.ours {
		if b.table == nil {
			continue
		}
		n, err := m.countBytes(ctx, b)
		if err != nil {
			return fmt.Errorf("bitmap %s: %w", b.Name, err)
		}
		counted[b.Name] = n
		if e.Facts.GranularityBytes == 0 {
			e.Facts.GranularityBytes = b.GranularityBytes
		}
	}
	for i, b := range e.Bitmaps {
		if n, ok := counted[b.Name]; ok && b.Ours {
			e.Bitmaps[i].DirtyBytes = n
		}
	}
	return nil
}

// facts is what a record keeps of the disk.
func (m *image) facts(p print) format.ImageFacts {
	f := format.ImageFacts{
		Path: m.top().path, Format: "raw",
		Device: p.files[0].stamp.Device, Inode: p.files[0].stamp.Inode,
		FileBytes: p.files[0].stamp.SizeBytes,
	}
	if m.header != nil {
		f.Format = "qcow2"
		f.ClusterBytes = m.header.ClusterBytes()
		f.ActiveL1 = format.Hash(m.disk.Image().ActiveL1Hash())
		if f.GranularityBytes == 0 && m.header.Version >= 3 && len(m.ours) == 0 {
			f.GranularityBytes = newGranularityBytes
		}
	}
	stamps := map[string]facts.Stamp{}
	for _, one := range p.files {
		stamps[one.path] = one.stamp
	}
	for _, l := range m.disk.Layers() {
		f.Chain = append(f.Chain, layerFacts(l, stamps[l.Path]))
	}
	return f
}

func layerFacts(l qcow2.Layer, s facts.Stamp) format.LayerFacts {
	role := facts.RoleBacking
	switch l.Role {
	case qcow2.Top:
		role = facts.RoleTop
	case qcow2.DataFile:
		role = facts.RoleData
	}
	return facts.Layer(role, l.Path, l.Format, l.Header, s)
}
