package offline

import (
	"crypto/sha256"
	"fmt"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source/facts"
)

// print is what must not change between two looks at a disk: file by file its
// identity, size, times and header, and of the top image the bitmap directory and
// our tables. On block devices there are no times; there the structures and the
// locks have to do.
type print struct {
	files     []filePrint
	directory [sha256.Size]byte
	tables    [sha256.Size]byte
}

type filePrint struct {
	path   string
	stamp  facts.Stamp
	header [sha256.Size]byte // zero for raw files
}

// takePrint reads everything anew, except where the structures are: when they
// have moved, header or directory tell.
func (m *image) takePrint() (print, error) {
	p := print{}
	headers := map[string]*qcow2.Header{}
	for _, l := range m.disk.Layers() {
		headers[l.Path] = l.Header
	}
	for _, f := range m.files {
		one := filePrint{path: f.path}
		var err error
		if one.stamp, err = f.stamp(); err != nil {
			return print{}, err
		}
		if h := headers[f.path]; h != nil {
			if one.header, err = hashRange(f.io, 0, h.ClusterBytes()); err != nil {
				return print{}, err
			}
		}
		p.files = append(p.files, one)
	}
	if m.header == nil || m.header.Bitmaps == nil {
		return p, nil
	}
	var err error
	if p.directory, err = hashRange(m.top().io, m.header.Bitmaps.DirectoryOffset, m.header.Bitmaps.DirectoryBytes); err != nil {
		return print{}, err
	}
	sum := sha256.New()
	for _, b := range m.ours {
		if b.table == nil {
			continue
		}
		one, err := hashRange(m.top().io, b.TableOffset, tableBytes(b.Bitmap))
		if err != nil {
			return print{}, err
		}
		sum.Write(one[:])
	}
	p.tables = [sha256.Size]byte(sum.Sum(nil))
	return p, nil
}

func hashRange(f qcow2.File, off, n int64) ([sha256.Size]byte, error) {
	b, err := readRange(f, off, n)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(b), nil
}

// difference says in a few words what is no longer as it was; empty: nothing.
func (p print) difference(now print) string {
	if len(p.files) != len(now.files) {
		return fmt.Sprintf("the disk is made of %d files instead of %d", len(now.files), len(p.files))
	}
	for i, was := range p.files {
		is := now.files[i]
		switch {
		case was.path != is.path:
			return fmt.Sprintf("%s instead of %s", is.path, was.path)
		case was.stamp.Device != is.stamp.Device || was.stamp.Inode != is.stamp.Inode:
			return was.path + " is another file"
		case was.stamp.SizeBytes != is.stamp.SizeBytes:
			return fmt.Sprintf("%s has %d bytes instead of %d", was.path, is.stamp.SizeBytes, was.stamp.SizeBytes)
		case was.stamp.ModifiedNanos != is.stamp.ModifiedNanos:
			return was.path + " was modified"
		case was.stamp.ChangedNanos != is.stamp.ChangedNanos:
			return was.path + " was changed"
		case was.header != is.header:
			return was.path + " has another header"
		}
	}
	switch {
	case p.directory != now.directory:
		return "the bitmap directory was rewritten"
	case p.tables != now.tables:
		return "a bitmap table was rewritten"
	}
	return ""
}
