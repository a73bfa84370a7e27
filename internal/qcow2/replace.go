package qcow2

import (
	"fmt"
	"slices"
)

// BitmapSpec describes a bitmap to be made. It begins empty.
type BitmapSpec struct {
	Name string
	// GranularityBytes is what one bit stands for: a power of two, 512 B to
	// 2 GiB.
	GranularityBytes int64
	// Enabled makes every later writer of the disk record into it.
	Enabled bool
}

// Replace adds and removes bitmaps in one step: a crash leaves all of it done,
// nothing of it done, or an image without valid bitmaps. A removed bitmap may be
// in use; an added one may have the name of a removed one. The other bitmaps
// keep their entries byte for byte, and their order.
//
// The order of its writes, "|" being a Sync:
//
//	new tables and directory, their refcounts | autoclear bit off |
//	header extension | autoclear bit on | refcounts of what is not used any more |
//
// See extensionPlace for the extension. The bit, in one byte, is the fuse:
// while it is off, QEMU does not look at the extension, of which three fields
// have to change at once. A crash while it is off costs the image all of its
// bitmaps, also those of others; their owners find them gone and start anew.
// Before and after, it costs leaked clusters at most. In an image whose bit was
// off already, what a stale extension refers to is left behind as leaked
// clusters, as QEMU leaves it.
func (e *Editor) Replace(add []BitmapSpec, remove []string) error {
	s, err := e.read()
	if err != nil {
		return err
	}
	kept, gone, err := s.selectBitmaps(add, remove)
	if err != nil || len(add)+len(gone) == 0 {
		return err
	}
	place, err := s.placeExtension(len(kept)+len(add) > 0)
	if err != nil {
		return err
	}
	unused, err := s.planFree(gone)
	if err != nil {
		return err
	}
	if len(kept)+len(add) == 0 {
		if err := s.unlinkDirectory(place); err != nil {
			return err
		}
		return s.free(unused)
	}
	d, err := s.writeDirectory(kept, add)
	if err != nil {
		return err
	}
	if err := s.linkDirectory(place, d); err != nil {
		return err
	}
	return s.free(unused)
}

// selectBitmaps tells which bitmaps stay and which go, and refuses what cannot
// be added.
func (s *state) selectBitmaps(add []BitmapSpec, remove []string) (kept, gone []Bitmap, err error) {
	for i, name := range remove {
		if slices.Contains(remove[:i], name) {
			continue
		}
		b, err := s.find(name)
		if err != nil {
			return nil, nil, err
		}
		gone = append(gone, b)
	}
	names := map[string]bool{}
	for _, b := range s.bitmaps {
		if !slices.Contains(remove, b.Name) {
			kept = append(kept, b)
			names[b.Name] = true
		}
	}
	for _, spec := range add {
		if err := s.header.checkSpec(spec); err != nil {
			return nil, nil, s.directoryError(err)
		}
		if names[spec.Name] {
			return nil, nil, s.directoryError(fmt.Errorf("bitmap %q: %w", spec.Name, ErrExists))
		}
		names[spec.Name] = true
	}
	if len(names) > maxBitmaps {
		return nil, nil, s.directoryError(fmt.Errorf("more than %d bitmaps: %w", maxBitmaps, ErrUnsupported))
	}
	return kept, gone, nil
}

// checkSpec refuses bitmaps that QEMU would refuse in this image.
func (h *Header) checkSpec(spec BitmapSpec) error {
	if err := checkBitmapName(spec.Name); err != nil {
		return err
	}
	g := spec.GranularityBytes
	if g < 1<<minGranularityBits || g > 1<<maxGranularityBits || g&(g-1) != 0 {
		return fmt.Errorf("bitmap %q: granularity of %d bytes is not a power of two between %d and %d: %w",
			spec.Name, g, 1<<minGranularityBits, int64(1)<<maxGranularityBits, ErrUnsupported)
	}
	entries := bitmapTableEntries(h.SizeBytes, g, h.ClusterBytes())
	if entries == 0 {
		return fmt.Errorf("bitmap %q for a disk of size 0: %w", spec.Name, ErrUnsupported)
	}
	if entries > maxBitmapTableEntries || entries*h.ClusterBytes() > maxBitmapDataBytes {
		return fmt.Errorf("bitmap %q: granularity of %d bytes is too small for a disk of %d bytes: %w", spec.Name, g, h.SizeBytes, ErrUnsupported)
	}
	return nil
}

// entry returns the directory entry for a new bitmap, without its table.
func (h *Header) entry(spec BitmapSpec) Bitmap {
	b := Bitmap{Name: spec.Name, GranularityBytes: spec.GranularityBytes, Enabled: spec.Enabled, Type: bitmapTypeDirty,
		TableEntries: uint32(bitmapTableEntries(h.SizeBytes, spec.GranularityBytes, h.ClusterBytes()))}
	if spec.Enabled {
		b.Flags = bitmapAuto
	}
	return b
}

// clusters is a run of clusters.
type clusters struct{ first, count int64 }

// planFree returns what is no longer used when some bitmaps are gone and the
// directory has moved, after the checks of targets. An in-use bitmap whose table
// is damaged leaves its clusters behind as leaks, as it does in QEMU.
func (s *state) planFree(gone []Bitmap) ([]clusters, error) {
	t := s.newTargets()
	// The header and the refcount table are written to as well.
	t.found[0] = ""
	first, count := s.clusterRange(s.header.RefcountTableOffset, int64(s.header.RefcountTableClusters)<<s.header.ClusterBits)
	for c := first; c < first+count; c++ {
		t.found[c] = ""
	}
	var unused []clusters
	own := func(off, n int64) error {
		first, count := s.clusterRange(off, n)
		unused = append(unused, clusters{first, count})
		return t.owned(off, n)
	}
	if len(s.bitmaps) > 0 {
		if err := own(s.header.Bitmaps.DirectoryOffset, s.header.Bitmaps.DirectoryBytes); err != nil {
			return nil, err
		}
	}
	for _, b := range gone {
		table, err := ReadBitmapTable(s.file, s.header, b, s.fileBytes)
		if err != nil {
			if b.InUse {
				continue
			}
			return nil, err
		}
		if err := own(b.TableOffset, int64(b.TableEntries)*bitmapTableEntryBytes); err != nil {
			return nil, err
		}
		for _, entry := range table {
			if entry <= BitmapAllDirty {
				continue
			}
			if err := own(int64(entry), s.header.ClusterBytes()); err != nil {
				return nil, err
			}
		}
	}
	for _, x := range unused {
		for c := x.first; c < x.first+x.count; c++ {
			t.counted(c)
		}
	}
	return unused, t.check()
}

// free sets the refcounts of clusters that nothing refers to any more from 1 to
// 0. A crash in between leaves the others as leaks.
func (s *state) free(unused []clusters) error {
	for _, x := range unused {
		if err := s.refs.stage(x.first, x.count, 1, 0); err != nil {
			return err
		}
	}
	if err := s.refs.flush(); err != nil {
		return err
	}
	return syncFile(s.file)
}

// directory is a bitmap directory that the header does not refer to yet.
type directory struct {
	count  int
	bytes  int64
	offset int64
}

// writeDirectory puts empty tables for new bitmaps and a directory with old and
// new bitmaps into free clusters, and makes them durable.
func (s *state) writeDirectory(kept []Bitmap, add []BitmapSpec) (directory, error) {
	var b []byte
	for _, old := range kept {
		b = append(b, s.directory[old.entryAt:old.entryAt+old.entryBytes]...)
	}
	var runs []clusters
	for _, spec := range add {
		entry := s.header.entry(spec)
		run, err := s.allocate(int64(entry.TableEntries) * bitmapTableEntryBytes)
		if err != nil {
			return directory{}, err
		}
		runs = append(runs, run)
		entry.TableOffset = run.first << s.header.ClusterBits
		b = appendBitmapEntry(b, entry)
	}
	if len(b) > maxBitmapDirBytes {
		return directory{}, s.directoryError(fmt.Errorf("a directory of more than %d bytes: %w", maxBitmapDirBytes, ErrUnsupported))
	}
	run, err := s.allocate(int64(len(b)))
	if err != nil {
		return directory{}, err
	}
	if err := s.checkUnused(append(runs, run)); err != nil {
		return directory{}, err
	}
	for _, table := range runs {
		if err := writeZeros(s.file, table.first<<s.header.ClusterBits, table.count<<s.header.ClusterBits, "bitmap table"); err != nil {
			return directory{}, err
		}
	}
	d := directory{count: len(kept) + len(add), bytes: int64(len(b)), offset: run.first << s.header.ClusterBits}
	// Whole clusters are written, so that the file does not end within one.
	padded := append(b, make([]byte, run.count<<s.header.ClusterBits-int64(len(b)))...)
	if err := writeAt(s.file, padded, d.offset, "bitmap directory"); err != nil {
		return directory{}, err
	}
	// Until here an error, such as a full file system, has left no trace.
	if err := s.refs.flush(); err != nil {
		return directory{}, err
	}
	return d, syncFile(s.file)
}

// allocate finds free clusters for n bytes.
func (s *state) allocate(n int64) (clusters, error) {
	_, count := s.clusterRange(0, n)
	first, err := s.refs.allocate(count)
	return clusters{first, count}, err
}

// checkUnused makes sure that clusters that are free by their refcount belong to
// no structure, and that the blocks that count them belong to no other.
func (s *state) checkUnused(runs []clusters) error {
	t := s.newTargets()
	for _, run := range runs {
		t.unused(run.first, run.count)
		for c := run.first; c < run.first+run.count; c++ {
			t.counted(c)
		}
	}
	return t.check()
}
