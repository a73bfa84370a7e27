package offline

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
)

// maxFamilyBitmaps bounds the work that an image can ask for by holding bitmaps
// with our names. A run leaves one or two behind.
const maxFamilyBitmaps = 1000

// maxTableEntries bounds the memory for our tables of one image, 64 MiB. A bitmap
// of a disk of 16 TiB has 512 entries with the usual sizes.
const maxTableEntries = 8 << 20

// bitmap is one of our bitmaps in an image.
type bitmap struct {
	qcow2.Bitmap
	name ident.BitmapName
	// table is nil when the bits may not be believed.
	table []uint64
}

// image is one opened disk: its files, locked as readers do, and its structures.
type image struct {
	spec  Image
	files []*file // the top first; the rest in the order they were opened
	disk  *qcow2.Disk
	// header is that of the top image, nil for a raw one.
	header *qcow2.Header
	// bitmaps are all of the top image, also when they are not valid.
	bitmaps []qcow2.Bitmap
	ours    []bitmap
	layers  int // how many layers hold bitmaps of the family
}

func (m *image) top() *file { return m.files[0] }

// openImage opens and locks one disk with everything it is made of, and reads its
// structures. Nothing stays open after an error.
func openImage(ctx context.Context, spec Image, family ident.FamilyID, o Options) (*image, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	top, err := openTop(o.OpenFile, spec.Path, !spec.Raw)
	if err != nil {
		return nil, err
	}
	m := &image{spec: spec, files: []*file{top}}
	if err := m.open(family, o); err != nil {
		return nil, errors.Join(asUnusable(spec.Path, err), m.close())
	}
	return m, nil
}

func (m *image) open(family ident.FamilyID, o Options) error {
	top := m.top()
	if err := top.begin(o.Hold); err != nil {
		return err
	}
	layers, err := newOpener(o.AllowDirs, o.Hold, top)
	if err != nil {
		return err
	}
	m.disk, err = qcow2.OpenDisk(top.io, top.path, qcow2.DiskOptions{Opener: layers, CacheBytes: o.CacheBytes, Raw: m.spec.Raw})
	m.files = layers.files
	if err != nil {
		return err
	}
	if m.disk.Image() == nil {
		return nil
	}
	m.header = m.disk.Image().Header()
	if top.readOnly && m.header.Version >= 3 {
		return &source.UsableError{Path: m.spec.Path, Err: source.ErrReadOnly,
			Hint: "its bitmap could not be reset afterwards; run as a user who may write to it, or give the file or file system write permission"}
	}
	return m.readBitmaps(family)
}

// asUnusable puts the path before an error that has none, and makes it one of
// class source.ErrUnusable.
func asUnusable(path string, err error) error {
	if errors.Is(err, source.ErrUnusable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &source.UsableError{Path: path, Err: err}
}

// close ends all descriptors, and the locks with them.
func (m *image) close() error {
	var all error
	for _, f := range m.files {
		all = errors.Join(all, f.close())
	}
	return all
}

// readBitmaps reads the bitmap directories of all layers, and our tables of the
// top image.
func (m *image) readBitmaps(family ident.FamilyID) error {
	for _, l := range m.disk.Layers() {
		if l.Header == nil {
			continue
		}
		list, err := readDirectory(l.File, l.Header)
		if err != nil {
			return fmt.Errorf("%s: %w", l.Path, err)
		}
		if familyIn(list, family) {
			m.layers++
		}
		if l.Role == qcow2.Top {
			m.bitmaps = list
		}
	}
	var entries int64
	for _, b := range m.bitmaps {
		name, ok := ident.ParseBitmapName(b.Name)
		if !ok || name.Family != family {
			continue
		}
		ours := bitmap{Bitmap: b, name: name}
		if len(m.ours) == maxFamilyBitmaps {
			return fmt.Errorf("more than %d bitmaps of family %s: %w", maxFamilyBitmaps, family, qcow2.ErrUnsupported)
		}
		if m.header.BitmapsValid() && !b.InUse {
			if entries += int64(b.TableEntries); entries > maxTableEntries {
				return fmt.Errorf("more than %d table entries in bitmaps of family %s: %w", maxTableEntries, family, qcow2.ErrUnsupported)
			}
			var err error
			if ours.table, err = readTable(m.top().io, m.header, b); err != nil {
				return fmt.Errorf("bitmap %s: %w", b.Name, err)
			}
		}
		m.ours = append(m.ours, ours)
	}
	return nil
}

func familyIn(list []qcow2.Bitmap, family ident.FamilyID) bool {
	for _, b := range list {
		if name, ok := ident.ParseBitmapName(b.Name); ok && name.Family == family {
			return true
		}
	}
	return false
}

// readDirectory reads the bitmaps of one layer. Where they are not valid, what is
// left of a directory may be anything, and is no reason to refuse the image:
// nobody looks at it.
func readDirectory(f qcow2.File, h *qcow2.Header) ([]qcow2.Bitmap, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	list, err := qcow2.ReadBitmaps(f, h, size)
	stale := errors.Is(err, qcow2.ErrCorrupt) || errors.Is(err, qcow2.ErrUnsupported)
	if stale && !h.BitmapsValid() {
		return nil, nil
	}
	return list, err
}

func readTable(f qcow2.File, h *qcow2.Header, b qcow2.Bitmap) ([]uint64, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	return qcow2.ReadBitmapTable(f, h, b, size)
}

func tableBytes(b qcow2.Bitmap) int64 { return int64(b.TableEntries) * 8 }

// readRange reads n bytes at off; what lies beyond the end of the file is zero,
// as for QEMU. The caller has bounded n.
func readRange(f qcow2.File, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	got, err := f.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	clear(b[got:])
	return b, nil
}
