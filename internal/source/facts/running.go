package facts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// Running describes the image at path, and the files below it, while a machine
// may be writing to them. Only headers are read, of which QEMU changes other
// fields than those that are kept, and no lock is taken. The file names in the
// headers are followed wherever they lead, because QEMU has done so already; of a
// file that is not qcow2 nothing is read. raw says that the image itself is not.
//
// What says that a disk was written to is left out: the L1 table, and the time of
// a data file's last write.
func Running(path string, raw bool) (format.ImageFacts, error) {
	top, err := look(path, RoleTop, formatOf(raw))
	if err != nil {
		return format.ImageFacts{}, err
	}
	f := format.ImageFacts{Path: top.facts.Path, Format: top.facts.Format,
		Device: top.facts.Device, Inode: top.facts.Inode, FileBytes: top.facts.FileBytes}
	if top.header != nil {
		f.ClusterBytes = top.header.ClusterBytes()
	}
	seen := map[string]bool{}
	for at := top; ; {
		if seen[at.facts.Path] || len(seen) > qcow2.MaxBackingDepth {
			return format.ImageFacts{}, fmt.Errorf("%s: %w: its backing files form a circle, or are too many", path, qcow2.ErrUnsupported)
		}
		seen[at.facts.Path] = true
		f.Chain = append(f.Chain, at.facts)
		h := at.header
		if h == nil {
			return f, nil
		}
		if h.ExternalData() {
			data, err := look(at.beside(h.DataFile), RoleData, FormatRaw)
			if err != nil {
				return format.ImageFacts{}, fmt.Errorf("data file of %s: %w", at.facts.Path, err)
			}
			f.Chain = append(f.Chain, data.facts)
		}
		if h.BackingFile == "" {
			return f, nil
		}
		if at, err = look(at.beside(h.BackingFile), RoleBacking, h.BackingFormat); err != nil {
			return format.ImageFacts{}, fmt.Errorf("backing file of %s: %w", f.Path, err)
		}
	}
}

func formatOf(raw bool) string {
	if raw {
		return FormatRaw
	}
	return FormatQcow2
}

// looked is one file.
type looked struct {
	name   string // absolute, as it was reached: relative names lead on from there
	facts  format.LayerFacts
	header *qcow2.Header // nil: raw
}

// beside resolves a name in this image as QEMU does.
func (l *looked) beside(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return l.name[:strings.LastIndexByte(l.name, '/')+1] + name
}

func look(name, role, fileFormat string) (l *looked, err error) {
	if !filepath.IsAbs(name) {
		return nil, fmt.Errorf("%s: not an absolute path", name)
	}
	path, err := filepath.EvalSymlinks(name)
	if err != nil {
		return nil, err
	}
	// Opening alone does something to some devices, and waits at a pipe.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if mode := info.Mode(); !mode.IsRegular() && (mode&os.ModeDevice == 0 || mode&os.ModeCharDevice != 0) {
		return nil, fmt.Errorf("%s: neither a regular file nor a block device", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	file := qcow2.NewOSFile(f)
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	stamp, err := StampOf(f, size)
	if err != nil {
		return nil, err
	}
	l = &looked{name: name}
	if fileFormat == FormatQcow2 {
		if l.header, err = qcow2.ReadHeader(file); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if role == RoleData {
		stamp.ModifiedNanos = 0 // the guest may be writing at this moment
	}
	l.facts = Layer(role, path, fileFormat, l.header, stamp)
	return l, nil
}
