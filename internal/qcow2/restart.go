package qcow2

import (
	"bytes"
	"fmt"
	"strings"
)

// Restart empties a bitmap and gives it another name, so that it stands for
// another point in time: name becomes interim, all bits are cleared, interim
// becomes final. The three names have the same length. The bitmap must be
// recording and properly saved.
//
// The order of its writes, "|" being a Sync:
//
//	interim over name in the directory | zeros over set bits | final over interim |
//
// Nothing is allocated, freed or pointed elsewhere, so no reference in the image
// ever changes: names are bytes without meaning to QEMU, bits may have any
// value, and a table entry that says "all dirty" becomes "all clean" by one
// byte. A crash leaves one of these: the bitmap as it was; a name that is a mix
// of the two, with all old bits; interim with all or some of the old bits, which
// is too much and never too little, as nothing was written to the disk since; a
// mix of interim and final, empty.
func (e *Editor) Restart(name, interim, final string) error {
	s, err := e.read()
	if err != nil {
		return err
	}
	b, err := s.find(name)
	if err != nil {
		return err
	}
	if !b.Enabled {
		return s.directoryError(fmt.Errorf("bitmap %q does not record, so it cannot stand for a later point in time", name))
	}
	for _, to := range []string{interim, final} {
		if err := s.checkRename(b, name, to); err != nil {
			return err
		}
	}
	if err := s.checkMixes(name, interim, final); err != nil {
		return err
	}
	r, err := s.planReset(b)
	if err != nil {
		return err
	}
	if err := s.rename(b, name, interim); err != nil {
		return err
	}
	if err := r.run(); err != nil {
		return err
	}
	return s.rename(b, interim, final)
}

// Reset empties a bitmap, which keeps its name. It is Restart without its first
// and last step, and for bitmaps whose owner knows by itself what they stand
// for: a crash leaves it with all or some of its bits.
func (e *Editor) Reset(name string) error {
	s, err := e.read()
	if err != nil {
		return err
	}
	b, err := s.find(name)
	if err != nil {
		return err
	}
	r, err := s.planReset(b)
	if err != nil {
		return err
	}
	return r.run()
}

// checkRename refuses names that do not fit into the place of the old one, or
// that another bitmap has.
func (s *state) checkRename(b Bitmap, from, to string) error {
	if err := checkBitmapName(to); err != nil {
		return s.directoryError(err)
	}
	if len(to) != len(from) || b.nameBytes != len(from) {
		return s.directoryError(fmt.Errorf("bitmap %q cannot become %q in place: the lengths differ", from, to))
	}
	for _, other := range s.bitmaps {
		if other.Name == to && to != from {
			return s.directoryError(fmt.Errorf("bitmap %q: %w", to, ErrExists))
		}
	}
	return nil
}

// checkMixes makes sure that no torn write of the names gives the name of
// another bitmap: QEMU refuses an image with two equal names.
func (s *state) checkMixes(name, interim, final string) error {
	for _, other := range s.bitmaps {
		if other.Name == name || len(other.Name) != len(name) {
			continue
		}
		for _, pair := range [][2]string{{name, interim}, {interim, final}} {
			if isMix(other.Name, pair[0], pair[1]) || isMix(other.Name, pair[1], pair[0]) {
				return s.directoryError(fmt.Errorf("renaming %q to %q could be cut at %q: %w", pair[0], pair[1], other.Name, ErrExists))
			}
		}
	}
	return nil
}

// isMix tells whether s is a start of a followed by the rest of b. All three
// have the same length.
func isMix(s, a, b string) bool {
	i := 0
	for i < len(s) && s[i] == a[i] {
		i++
	}
	return strings.HasSuffix(b, s[i:])
}

// rename changes the bytes of a name in which the two differ, in place.
func (s *state) rename(b Bitmap, from, to string) error {
	if from == to {
		return nil
	}
	at := s.header.Bitmaps.DirectoryOffset + b.entryAt + bitmapEntryFixedBytes
	if err := writeChanged(s.file, []byte(from), []byte(to), at, "bitmap directory entry"); err != nil {
		return err
	}
	return syncFile(s.file)
}

// reset is a checked plan to clear all bits of a bitmap.
type reset struct {
	state  *state
	bitmap Bitmap
	table  []uint64
}

// planReset makes all checks: the bitmap is properly saved, its directory, table
// and bits have a refcount of 1, and belong to nothing else.
func (s *state) planReset(b Bitmap) (*reset, error) {
	if b.InUse {
		return nil, &Error{Structure: "bitmap directory", Offset: s.header.Bitmaps.DirectoryOffset + b.entryAt,
			Err: fmt.Errorf("bitmap %q: %w", b.Name, ErrInUse), Hint: "it can only be removed"}
	}
	table, err := ReadBitmapTable(s.file, s.header, b, s.fileBytes)
	if err != nil {
		return nil, err
	}
	t := s.newTargets()
	if err := t.owned(s.header.Bitmaps.DirectoryOffset, s.header.Bitmaps.DirectoryBytes); err != nil {
		return nil, err
	}
	if err := t.owned(b.TableOffset, int64(b.TableEntries)*bitmapTableEntryBytes); err != nil {
		return nil, err
	}
	for _, entry := range table {
		if entry > BitmapAllDirty {
			if err := t.owned(int64(entry), s.header.ClusterBytes()); err != nil {
				return nil, err
			}
		}
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	return &reset{s, b, table}, nil
}

// run clears the bits. The clusters they lie in are kept: QEMU frees them when
// it next saves the bitmap. To free them here would mean to change an offset to
// zero, and a torn write of that is an offset to somewhere else.
func (r *reset) run() error {
	wrote := false
	for i, entry := range r.table {
		if entry == BitmapAllClean {
			continue
		}
		if entry == BitmapAllDirty {
			last := r.bitmap.TableOffset + int64(i+1)*bitmapTableEntryBytes - 1
			if err := writeAt(r.state.file, []byte{0}, last, "bitmap table"); err != nil {
				return err
			}
			wrote = true
			continue
		}
		some, err := r.clear(int64(entry))
		if err != nil {
			return err
		}
		wrote = wrote || some
	}
	if !wrote {
		return nil
	}
	return syncFile(r.state.file)
}

// clear writes zeros over the sectors of a cluster that have set bits.
func (r *reset) clear(cluster int64) (wrote bool, err error) {
	end := min(cluster+r.state.header.ClusterBytes(), r.state.fileBytes)
	piece := make([]byte, min(r.state.header.ClusterBytes(), 64<<10))
	zeros := make([]byte, len(piece))
	for at := cluster; at < end; at += int64(len(piece)) {
		p := piece[:min(int64(len(piece)), end-at)]
		if err := readPadded(r.state.file, p, at, r.state.fileBytes); err != nil {
			return wrote, readFailed("bitmap data", at, err)
		}
		for from := 0; from < len(p); {
			to := from
			for to < len(p) && !isZero(p[to:min(to+sectorBytes, len(p))]) {
				to = min(to+sectorBytes, len(p))
			}
			if to == from {
				from += sectorBytes
				continue
			}
			if err := writeAt(r.state.file, zeros[:to-from], at+int64(from), "bitmap data"); err != nil {
				return wrote, err
			}
			wrote, from = true, to
		}
	}
	return wrote, nil
}

// isZero tells whether a sector has no set bit.
func isZero(p []byte) bool {
	return len(bytes.TrimLeft(p, "\x00")) == 0
}
