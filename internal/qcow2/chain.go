package qcow2

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// MaxBackingDepth is how many backing files may lie below an image.
const MaxBackingDepth = 8

// Role is what a file is to a disk.
type Role uint8

const (
	// Top is the image itself.
	Top Role = iota
	// Backing is a backing file of the layer before.
	Backing
	// DataFile is the external data file of the image before it.
	DataFile
)

func (r Role) String() string {
	return [...]string{"image", "backing file", "data file"}[r]
}

// Reference is how an image refers to another file.
type Reference struct {
	Role Role
	// Name is the name as the image stores it.
	Name string
	// Format is qcow2 or raw; the format is never guessed.
	Format string
	// From is the path of the image that refers to the file.
	From string
}

// Path returns the path as QEMU resolves it: the name of a backing file is
// relative to the folder of the image, that of a data file to the folder that
// the program runs in.
func (r Reference) Path() string {
	if r.Role == Backing && !filepath.IsAbs(r.Name) {
		return filepath.Join(filepath.Dir(r.From), r.Name)
	}
	return filepath.Clean(r.Name)
}

// Opener decides which files an image may pull in, and opens them for reading.
// Images may be hostile, and a name in them is no permission.
type Opener interface {
	// OpenLayer opens the file and returns it with the path that identifies
	// it: the same for the same file. A File that is an io.Closer is closed by
	// Disk.Close. A refusal is an error around ErrNotAllowed.
	OpenLayer(Reference) (File, string, error)
}

// Layer is one file of a disk.
type Layer struct {
	Path   string
	Format string // qcow2 or raw
	Role   Role
	File   File
	Header *Header // nil for raw files
}

const (
	formatQcow2 = "qcow2"
	formatRaw   = "raw"

	hintAllow = "allow its folder with --allow-dir DIR when you trust the image"
)

// chain opens the files of a disk one after the other.
type chain struct {
	options DiskOptions
	disk    *Disk
}

// open opens the top file and everything below it.
func (c *chain) open(f File, path string) error {
	format := formatQcow2
	if c.options.Raw {
		format = formatRaw
	}
	role := Top
	for depth := 0; ; depth++ {
		if depth > MaxBackingDepth {
			return &Error{Structure: "backing file of " + path, Offset: -1,
				Err:  fmt.Errorf("more than %d backing files: %w", MaxBackingDepth, ErrUnsupported),
				Hint: "shorten the chain with `qemu-img commit` or `qemu-img rebase`"}
		}
		l, err := c.add(f, path, format, role)
		if err != nil {
			return fmt.Errorf("open %s %s: %w", role, path, err)
		}
		if l.image == nil || l.image.header.BackingFile == "" {
			return nil
		}
		h := l.image.header
		format, role = h.BackingFormat, Backing
		if f, path, err = c.follow(Reference{Role: role, Name: h.BackingFile, Format: format, From: path}, h.BackingFileOffset); err != nil {
			return err
		}
	}
}

// add makes the next layer of an opened file, and opens its data file.
func (c *chain) add(f File, path, format string, role Role) (*layer, error) {
	if format == formatRaw {
		size, err := f.Size()
		if err != nil {
			return nil, readFailed("raw file", -1, err)
		}
		l := &layer{path: path, data: f, dataBytes: size, size: roundUp(size, sectorBytes)}
		c.disk.append(l, Layer{Path: path, Format: format, Role: role, File: f})
		return l, nil
	}
	image, err := OpenImage(f, ImageOptions{CacheBytes: c.options.cacheShare(role)})
	if err != nil {
		return nil, err
	}
	h := image.header
	if err := h.CheckTrust(); err != nil {
		return nil, err
	}
	l := &layer{path: path, image: image, data: f, dataBytes: image.fileBytes, size: image.Size(), unpacker: newUnpacker(h)}
	c.disk.append(l, Layer{Path: path, Format: format, Role: role, File: f, Header: h})
	if h.ExternalData() {
		return l, c.openData(l)
	}
	return l, nil
}

// openData opens the external data file of an image.
func (c *chain) openData(l *layer) error {
	h := l.image.header
	if h.DataFile == "" {
		return unsupported("data file", -1, "name it in the image: qemu-img amend -o data_file=PATH", "the image does not say where its data file is")
	}
	f, path, err := c.follow(Reference{Role: DataFile, Name: h.DataFile, Format: formatRaw, From: l.path}, -1)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return readFailed("data file "+path, -1, err)
	}
	l.data, l.dataBytes, l.image.dataBytes = f, size, size
	c.disk.layers = append(c.disk.layers, Layer{Path: path, Format: formatRaw, Role: DataFile, File: f})
	return nil
}

// follow opens a file that an image names, if all that can be known without
// opening it is in order. Offset is where the image names it.
func (c *chain) follow(r Reference, offset int64) (File, string, error) {
	structure := fmt.Sprintf("%s %q of %s", r.Role, r.Name, r.From)
	if i := strings.IndexAny(r.Name, ":/"); i >= 0 && r.Name[i] == ':' {
		return nil, "", &Error{Structure: structure, Offset: offset, Err: fmt.Errorf("not a plain file name: %w", ErrNotAllowed),
			Hint: "only local files are followed; flatten the image with `qemu-img convert`"}
	}
	if r.Format == "" {
		return nil, "", unsupported(structure, offset, fmt.Sprintf("formats are not guessed; store it: qemu-img rebase -u -F FORMAT -b %s %s", r.Name, r.From), "the image does not say its format")
	}
	if r.Format != formatQcow2 && r.Format != formatRaw {
		return nil, "", unsupported(structure, offset, "convert it with `qemu-img convert`", "format %q", r.Format)
	}
	if c.options.Opener == nil {
		return nil, "", &Error{Structure: structure, Offset: offset, Err: ErrNotAllowed, Hint: hintAllow}
	}
	f, path, err := c.options.Opener.OpenLayer(r)
	if err != nil {
		place := &Error{Structure: structure, Offset: offset, Err: err}
		if errors.Is(err, ErrNotAllowed) {
			place.Hint = hintAllow
		}
		return nil, "", place
	}
	if closer, ok := f.(io.Closer); ok {
		c.disk.closers = append(c.disk.closers, closer)
	}
	for _, l := range c.disk.layers {
		if l.Path == path {
			return nil, "", corrupt(structure, offset, "%s is part of the disk already", path)
		}
	}
	return f, path, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
