package qcow2

import (
	"fmt"
)

// Editor changes the bitmaps of one image, and nothing else in it. It is not
// safe for parallel use. The caller holds QEMU's write locks on the file from
// before OpenEditor until after the last call.
//
// Every call reads and checks the whole of what it relies on before its first
// write, and stops there when anything is doubtful. A crash at any instant, with
// writes that are torn at any byte, lost, or reordered between two calls of
// Sync, leaves an image that QEMU opens and in which `qemu-img check` finds at
// most leaked clusters (I6). What a crash may cost is said at each call.
//
// A call that returns an error may have been cut like that. It may be repeated.
type Editor struct {
	file File
}

// OpenEditor checks that the bitmaps of an image can be edited. It refuses
// version 2, images that are marked dirty or corrupt, unknown incompatible and
// autoclear features, and everything that makes QEMU refuse an image. Errors are
// *Error.
func OpenEditor(f File) (*Editor, error) {
	e := &Editor{file: f}
	if _, err := e.read(); err != nil {
		return nil, err
	}
	return e, nil
}

// state is an image as one call of an Editor finds it.
type state struct {
	file      File
	image     *Image
	header    *Header
	fileBytes int64
	first     []byte // the first cluster of the file
	// bitmaps are those that the image has. There are none when their autoclear
	// bit is clear, whatever a stale extension says: QEMU drops that extension
	// when it next writes to the image.
	bitmaps   []Bitmap
	directory []byte
	refs      *refcounts
}

func (e *Editor) read() (*state, error) {
	m, err := OpenImage(e.file, ImageOptions{CacheBytes: 1})
	if err != nil {
		return nil, err
	}
	s := &state{file: e.file, image: m, header: m.header, fileBytes: m.fileBytes}
	if err := checkEditable(s.header); err != nil {
		return nil, err
	}
	s.first = make([]byte, s.header.ClusterBytes())
	if err := readPadded(s.file, s.first, 0, s.fileBytes); err != nil {
		return nil, readFailed("header", 0, err)
	}
	if s.header.BitmapsValid() {
		s.bitmaps, s.directory, err = readBitmapDirectory(s.file, s.header, s.fileBytes)
		if err != nil {
			return nil, err
		}
	}
	s.refs, err = openRefcounts(s.file, s.header, s.fileBytes)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// checkEditable refuses what must not be written to, although it can be read.
func checkEditable(h *Header) error {
	if h.Version < 3 {
		return unsupported("header", headerVersion, "convert the image with `qemu-img amend -o compat=1.1`", "bitmaps in an image of version %d", h.Version)
	}
	if err := h.CheckTrust(); err != nil {
		return err
	}
	if unknown := h.UnknownAutoclear(); unknown != 0 {
		return unsupported("header", headerAutoclear,
			"whoever writes to the image without knowing these features has to clear them; a newer version may know them",
			"autoclear features %#x are set", unknown)
	}
	extensions := 0
	for _, x := range h.Extensions {
		if x.Type == extensionBitmaps {
			extensions++
		}
	}
	if extensions > 1 {
		return corrupt("header", h.HeaderBytes, "%d bitmaps extensions", extensions)
	}
	return nil
}

// find returns the bitmap with a name.
func (s *state) find(name string) (Bitmap, error) {
	for _, b := range s.bitmaps {
		if b.Name == name {
			return b, nil
		}
	}
	return Bitmap{}, s.directoryError(fmt.Errorf("bitmap %q: %w", name, ErrNotFound))
}

func (s *state) directoryError(err error) error {
	if s.header.Bitmaps == nil {
		return &Error{Structure: "bitmap directory", Offset: -1, Err: err}
	}
	return &Error{Structure: "bitmap directory", Offset: s.header.Bitmaps.DirectoryOffset, Err: err}
}

// clusterRange returns the clusters that n bytes at off touch.
func (s *state) clusterRange(off, n int64) (first, count int64) {
	first = off >> s.header.ClusterBits
	return first, (off+n+s.header.ClusterBytes()-1)>>s.header.ClusterBits - first
}
