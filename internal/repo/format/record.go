package format

import (
	"fmt"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// Consistency of a point, as far as the tool knows.
const (
	ConsistencyOffline = "offline" // no VM had the disks open
	ConsistencyCrash   = "crash"   // like a power cut at the point in time
	ConsistencyFrozen  = "frozen"  // the guest's file systems were frozen
)

// How a disk came into a point.
const (
	ModeFull        = "full"        // read in whole, nothing to compare with
	ModeIncremental = "incremental" // only what its bitmap called dirty was read
	ModeRescan      = "rescan"      // read in whole, what differs was stored
	ModeMissing     = "missing"     // not captured; DiskRecord.Error says why
)

// Reference names an object by its length and hash.
type Reference struct {
	Bytes int64 `json:"bytes"`
	Hash  Hash  `json:"hash"`
}

// NodeRef says where a map node lies: in map object Object of run Run, Length
// bytes from Offset on; Hash is their plain BLAKE3-256. The zero value means that
// there is no node because the whole range reads as zero.
type NodeRef struct {
	Run    ident.RunID `json:"run"`
	Object uint32      `json:"object"`
	Offset uint32      `json:"offset"`
	Length uint32      `json:"length"`
	Hash   Hash        `json:"hash"`
}

// IsZero reports whether this refers to no node.
func (r NodeRef) IsZero() bool { return r == NodeRef{} }

// Verify compares the bytes of a node with the reference.
func (r NodeRef) Verify(b []byte) error {
	if int64(len(b)) != int64(r.Length) {
		return corrupt("map node", -1, "%d bytes where its reference says %d", len(b), r.Length)
	}
	if SumHash(b) != r.Hash {
		return corrupt("map node", 0, "its hash does not match its reference")
	}
	return nil
}

// validate checks what can be checked without the object.
func (r NodeRef) validate() error {
	switch {
	case r.Run.IsZero() || r.Object > MaxSeq:
		return corrupt("map node reference", -1, "no run, or object %d is out of range", r.Object)
	case r.Length < MinNodeBytes || r.Length > MaxNodeBytes:
		return corrupt("map node reference", -1, "a length of %d bytes is out of range", r.Length)
	case r.Offset < MapHeaderBytes || uint64(r.Offset)+uint64(r.Length) > MaxObjectBytes:
		return corrupt("map node reference", -1, "bytes %d+%d lie outside of a map object", r.Offset, r.Length)
	}
	return nil
}

// Location is the place of one block: the Ordinal-th DATA block of pack Pack of
// run Run. What follows it on the disk often follows it in the pack.
type Location struct {
	Run     ident.RunID
	Pack    uint32
	Ordinal uint32
}

// String gives a short text for messages.
func (l Location) String() string { return fmt.Sprintf("%s/p%08d#%d", l.Run, l.Pack, l.Ordinal) }

// MapRoot is the root of a disk's map. A zero Node means that the whole disk reads
// as zero.
type MapRoot struct {
	Node             NodeRef `json:"node"`
	Levels           int     `json:"levels"` // 1: the root is a leaf; 0 only with a zero Node
	RunsSinceRewrite int     `json:"runs_since_rewrite"`
}

// validate checks that a tree of this height covers the disk.
func (m MapRoot) validate(blocks int64) error {
	switch {
	case m.Levels < 0 || m.Levels > MaxLevels || m.RunsSinceRewrite < 0:
		return corrupt("map root", -1, "%d levels, %d runs since the map was rewritten", m.Levels, m.RunsSinceRewrite)
	case m.Node.IsZero():
		return nil
	case m.Levels < TreeLevels(blocks) || m.Levels == 0:
		return corrupt("map root", -1, "%d levels do not cover %d blocks", m.Levels, blocks)
	}
	return m.Node.validate()
}

// ImageFacts is what the next run compares with the image it finds, to decide
// whether a bitmap can be believed. Times are nanoseconds since 1970 by the
// image's file system.
type ImageFacts struct {
	Path             string       `json:"path"`
	Format           string       `json:"format"` // "qcow2" or "raw"
	Device           uint64       `json:"device"`
	Inode            uint64       `json:"inode"`
	FileBytes        int64        `json:"file_bytes"`
	ClusterBytes     int64        `json:"cluster_bytes,omitempty"`
	GranularityBytes int64        `json:"granularity_bytes,omitempty"` // of the bitmap that was used or made
	ActiveL1         Hash         `json:"active_l1"`                   // what the active L1 table's place and entries hash to
	Chain            []LayerFacts `json:"chain,omitempty"`             // top first, then its data file and backing files
}

// LayerFacts describes one file of a disk.
type LayerFacts struct {
	Role          string `json:"role"` // "top", "data" or "backing"
	Path          string `json:"path"`
	Format        string `json:"format"`
	Device        uint64 `json:"device"`
	Inode         uint64 `json:"inode"`
	FileBytes     int64  `json:"file_bytes"`
	DiskBytes     int64  `json:"disk_bytes"` // virtual size
	ModifiedNanos int64  `json:"modified_nanos"`
	ChangedNanos  int64  `json:"changed_nanos"`
	Backing       string `json:"backing,omitempty"` // the name that this layer's header gives the next
	Header        Hash   `json:"header"`            // of the header's fields that must not change
}

// DiskRecord is one disk of a point.
type DiskRecord struct {
	Name      string      `json:"name"`
	Ordinal   int         `json:"ordinal"` // the number its packs of this run call it by
	Mode      string      `json:"mode"`
	Reason    string      `json:"reason,omitempty"` // why not incremental
	Error     string      `json:"error,omitempty"`  // ModeMissing only
	Base      ident.RunID `json:"base"`             // zero: none
	SizeBytes int64       `json:"size_bytes"`
	Image     ImageFacts  `json:"image"`
	Map       MapRoot     `json:"map"`

	DirtyBytes   int64 `json:"dirty_bytes"`
	ReadBytes    int64 `json:"read_bytes"`
	ZeroBytes    int64 `json:"zero_bytes"`
	SkippedBytes int64 `json:"skipped_bytes"`
	StoredBytes  int64 `json:"stored_bytes"`
}

// Record makes a restore point: the one small object, written last, that refers to
// all else. Which other runs it depends on is said in its manifest, so that it
// stays small.
type Record struct {
	Identity
	Nonce       Nonce        `json:"nonce"`
	Time        time.Time    `json:"time"`    // the point in time
	Started     time.Time    `json:"started"` // when the run began
	Consistency string       `json:"consistency"`
	BlockBytes  int64        `json:"block_bytes"`
	Disks       []DiskRecord `json:"disks"`
	Extras      *Extras      `json:"extras,omitempty"`
	Manifest    Reference    `json:"manifest"`
	Host        string       `json:"host"`
	Tool        string       `json:"tool"`
	QEMU        string       `json:"qemu,omitempty"`
}

// Disk gives the record of a disk by name, nil when there is none.
func (r *Record) Disk(name string) *DiskRecord {
	for i := range r.Disks {
		if r.Disks[i].Name == name {
			return &r.Disks[i]
		}
	}
	return nil
}

// Complete reports whether every disk was captured.
func (r *Record) Complete() bool {
	for i := range r.Disks {
		if r.Disks[i].Mode == ModeMissing {
			return false
		}
	}
	return true
}

// AppendRecord appends the document.
func AppendRecord(dst []byte, r *Record) ([]byte, error) {
	v := *r
	v.Time, v.Started = r.Time.UTC(), r.Started.UTC()
	return appendDocument(dst, KindRecord, &v, func(b []byte) (*Record, error) { return ParseRecord(b, r.Identity) })
}

// ParseRecord reads the document that lies under PointKey of this identity.
func ParseRecord(b []byte, at Identity) (*Record, error) {
	r := &Record{}
	if err := parseDocument(b, KindRecord, r); err != nil {
		return nil, err
	}
	if err := r.validate(); err != nil {
		return nil, err
	}
	if err := r.Identity.check("record", at); err != nil {
		return nil, err
	}
	return r, nil
}

// ParseSlot reads what lies under PointKey: exactly one of the results is not nil
// when there is no error.
func ParseSlot(b []byte, at Identity) (*Record, *Abort, error) {
	kind, err := DocumentKind(b)
	if err != nil {
		return nil, nil, fmt.Errorf("parse commit slot: %w", err)
	}
	if kind == KindAbort {
		a, err := ParseAbort(b, at)
		if err != nil {
			return nil, nil, err
		}
		return nil, a, nil
	}
	r, err := ParseRecord(b, at)
	if err != nil {
		return nil, nil, err
	}
	return r, nil, nil
}

func (r *Record) validate() error {
	if err := r.Identity.validate("record"); err != nil {
		return err
	}
	switch {
	case r.Nonce.IsZero() || r.Consistency == "":
		return corrupt("record", -1, "nonce or consistency is missing")
	case CheckBlockBytes(r.BlockBytes) != nil:
		return corrupt("record", -1, "block size %d is no power of two from 16 KiB to 1 MiB", r.BlockBytes)
	case r.Manifest.Bytes < minManifestTotalBytes || r.Manifest.Bytes > MaxObjectBytes || r.Manifest.Hash.IsZero():
		return corrupt("record", -1, "the reference to the manifest is out of range")
	case len(r.Disks) == 0:
		return corrupt("record", -1, "it has no disk")
	}
	names, ordinals := map[string]bool{}, map[int]bool{}
	for i := range r.Disks {
		d := &r.Disks[i]
		if err := d.validate(r.BlockBytes); err != nil {
			return err
		}
		if names[d.Name] || ordinals[d.Ordinal] {
			return corrupt("record", -1, "two disks have the name %q or the ordinal %d", d.Name, d.Ordinal)
		}
		names[d.Name], ordinals[d.Ordinal] = true, true
	}
	return r.Extras.validate(r.BlockBytes)
}

func (d *DiskRecord) validate(blockBytes int64) error {
	if ident.CheckDiskName(d.Name) != nil || d.Ordinal < 0 || d.Ordinal > MaxDiskOrdinal || d.SizeBytes < 0 {
		return corrupt("record", -1, "disk %.40q has a bad name, ordinal %d or size %d", d.Name, d.Ordinal, d.SizeBytes)
	}
	if min(d.DirtyBytes, d.ReadBytes, d.ZeroBytes, d.SkippedBytes, d.StoredBytes) < 0 {
		return corrupt("record", -1, "disk %q counts fewer than no bytes", d.Name)
	}
	switch d.Mode {
	case ModeFull, ModeIncremental, ModeRescan:
		if err := d.Map.validate(Blocks(d.SizeBytes, blockBytes)); err != nil {
			return fmt.Errorf("check disk %q of the record: %w", d.Name, err)
		}
	case ModeMissing:
		if d.Map != (MapRoot{}) || d.Error == "" {
			return corrupt("record", -1, "disk %q is missing, yet has a map or no error", d.Name)
		}
	default:
		return corrupt("record", -1, "disk %q has the unknown mode %.20q", d.Name, d.Mode)
	}
	return nil
}
