package facts

import (
	"fmt"
	"os"
	"syscall"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// Roles of files, as in the chain of format.ImageFacts.
const (
	RoleTop     = "top"
	RoleData    = "data"
	RoleBacking = "backing"
)

// Formats of files, as in the chain of format.ImageFacts.
const (
	FormatQcow2 = "qcow2"
	FormatRaw   = "raw"
)

// Stamp is what the file system says about a file without reading it. Times are
// nanoseconds since 1970; on block devices they say nothing about writing and are
// zero.
type Stamp struct {
	Device, Inode               uint64
	SizeBytes                   int64
	ModifiedNanos, ChangedNanos int64
}

// StampOf asks for an open regular file or block device, whose size the caller
// knows.
func StampOf(f *os.File, sizeBytes int64) (Stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return Stamp{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Stamp{}, fmt.Errorf("%s: the system does not say which file this is", f.Name())
	}
	s := Stamp{Device: uint64(stat.Dev), Inode: stat.Ino, SizeBytes: sizeBytes}
	if info.Mode().IsRegular() {
		s.ModifiedNanos, s.ChangedNanos = stat.Mtim.Nano(), stat.Ctim.Nano()
	}
	return s, nil
}

// Layer describes one file of a disk; its header is nil when it is raw.
func Layer(role, path, fileFormat string, h *qcow2.Header, s Stamp) format.LayerFacts {
	l := format.LayerFacts{
		Role: role, Path: path, Format: fileFormat, Device: s.Device, Inode: s.Inode, FileBytes: s.SizeBytes,
		DiskBytes: s.SizeBytes, ModifiedNanos: s.ModifiedNanos, ChangedNanos: s.ChangedNanos,
	}
	if h != nil {
		l.DiskBytes = h.SizeBytes
		l.Backing = h.BackingFile
		l.Header = headerHash(h)
	}
	return l
}

// headerHash covers the fields of a header that stay the same for the life of an
// image, whatever guests, QEMU and we do: not sizes, places of tables, bitmaps,
// snapshots, and bits that say in what state the image is.
func headerHash(h *qcow2.Header) format.Hash {
	return format.SumHash(fmt.Appendf(nil, "version %d, cluster bits %d, refcount bits %d, compression %d, data file %t %q, extended L2 %t, backing %q %q",
		h.Version, h.ClusterBits, h.RefcountBits, h.Compression, h.ExternalData(), h.DataFile, h.ExtendedL2(), h.BackingFile, h.BackingFormat))
}
