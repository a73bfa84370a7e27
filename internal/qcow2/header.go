package qcow2

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Compression is how compressed clusters are packed.
type Compression uint8

// The compression types of QEMU docs/interop/qcow2.txt, "compression_type".
const (
	Deflate Compression = compressionDeflate
	Zstd    Compression = compressionZstd
)

// Header is the header of an image with its extensions, checked as far as the
// header alone allows. Names of the fields of the format are in QEMU
// docs/interop/qcow2.txt, "Header".
type Header struct {
	Version     uint32 // 2 or 3
	ClusterBits uint8  // 9 to 21
	// SizeBytes is the size of the disk as QEMU presents it: whole sectors,
	// rounded down. StoredSizeBytes is what the header says.
	SizeBytes       int64
	StoredSizeBytes int64

	L1Offset  int64
	L1Entries uint32

	RefcountTableOffset   int64
	RefcountTableClusters uint32
	RefcountBits          int // width of a refcount: 1, 2, 4 ... 64

	SnapshotCount   uint32
	SnapshotsOffset int64

	// Feature bits; all zero in version 2.
	Incompatible, Compatible, Autoclear uint64

	HeaderBytes int64 // length of the fields, 72 in version 2; extensions follow
	Compression Compression

	// BackingFile is the name as stored; empty for none. BackingFormat is
	// empty when the image does not say it.
	BackingFile       string
	BackingFileOffset int64
	BackingFormat     string
	// DataFile is the name of the external data file as stored; it may be
	// empty although ExternalData is true.
	DataFile string

	// Bitmaps is the bitmaps extension. It is nil when there is none, in
	// version 2, and when BitmapsValid is false and its values make no sense.
	Bitmaps *BitmapsExtension
	// Extensions are all extensions in the order of the file, known or not,
	// without the end marker.
	Extensions []Extension
	// ExtensionsEnd is where the end marker lies, or would. ExtensionsLimit is
	// where the room for extensions ends: at the backing file's name, or at
	// the end of the first cluster.
	ExtensionsEnd, ExtensionsLimit int64
	// FeatureNames is the feature name table; empty when there is none.
	FeatureNames []FeatureName
}

// Extension is one header extension.
type Extension struct {
	Type   uint32
	Offset int64  // of the type field; the data begins 8 bytes later
	Data   []byte // without padding
}

// BitmapsExtension says where the bitmap directory lies.
type BitmapsExtension struct {
	Count           uint32
	DirectoryBytes  int64
	DirectoryOffset int64
	// PayloadOffset is where the 24 bytes of the extension's data lie.
	PayloadOffset int64
}

// FeatureName names one feature bit for programs that do not know it.
type FeatureName struct {
	Kind uint8 // 0 incompatible, 1 compatible, 2 autoclear
	Bit  uint8
	Name string
}

// ClusterBytes returns the size of a cluster.
func (h *Header) ClusterBytes() int64 { return 1 << h.ClusterBits }

// Dirty says that the image was not closed properly: its refcounts may be wrong.
func (h *Header) Dirty() bool { return h.Incompatible&incompatDirty != 0 }

// Corrupt says that QEMU found the image damaged and marked it.
func (h *Header) Corrupt() bool { return h.Incompatible&incompatCorrupt != 0 }

// ExternalData says that guest data lies in a file of its own.
func (h *Header) ExternalData() bool { return h.Incompatible&incompatDataFile != 0 }

// ExtendedL2 says that L2 entries are 16 bytes long and have subclusters.
func (h *Header) ExtendedL2() bool { return h.Incompatible&incompatExtendedL2 != 0 }

// RawDataFile says that the external data file reads as the disk.
func (h *Header) RawDataFile() bool { return h.Autoclear&autoclearRawDataFile != 0 }

// BitmapsValid says that every writer so far kept the bitmaps up to date.
func (h *Header) BitmapsValid() bool { return h.Autoclear&autoclearBitmaps != 0 }

// UnknownAutoclear returns the autoclear bits that are not known here. A writer
// would have to clear them first.
func (h *Header) UnknownAutoclear() uint64 { return h.Autoclear &^ knownAutoclear }

// CheckTrust returns an error for an image whose content cannot be trusted:
// one marked corrupt, or one that was not closed properly. QEMU opens both for
// reading; a backup must not be made from them.
func (h *Header) CheckTrust() error {
	if h.Corrupt() {
		return &Error{Structure: "header", Offset: headerIncompatible, Err: fmt.Errorf("marked by QEMU: %w", ErrCorrupt),
			Hint: "run `qemu-img check -r all` on a copy of the image and look at the disk before using it"}
	}
	if h.Dirty() {
		return &Error{Structure: "header", Offset: headerIncompatible, Err: ErrDirty,
			Hint: "run `qemu-img check -r all` on the image, or start and stop its machine once"}
	}
	return nil
}

// l2Entries returns the number of entries in one L2 table.
func (h *Header) l2Entries() int64 {
	if h.ExtendedL2() {
		return h.ClusterBytes() / extendedL2EntryBytes
	}
	return h.ClusterBytes() / l2EntryBytes
}

// l2Coverage returns the bytes of the disk that one L2 table describes; at most
// 2^39.
func (h *Header) l2Coverage() int64 { return h.l2Entries() << h.ClusterBits }

// ReadHeader reads and parses the header of an image.
func ReadHeader(f File) (*Header, error) {
	size, err := f.Size()
	if err != nil {
		return nil, readFailed("header", -1, err)
	}
	b := make([]byte, min(size, 1<<minClusterBits))
	if err := readPadded(f, b, 0, size); err != nil {
		return nil, readFailed("header", 0, err)
	}
	if h, err := parseFields(b); err == nil && h.ClusterBytes() > int64(len(b)) {
		b = make([]byte, min(size, h.ClusterBytes()))
		if err := readPadded(f, b, 0, size); err != nil {
			return nil, readFailed("header", 0, err)
		}
	}
	return ParseHeader(b, size)
}

// ParseHeader parses the first cluster of an image file that is fileSize bytes
// long; b may be shorter than a cluster only when the file is. It refuses what
// QEMU refuses to open for reading, and encrypted images. Images that are
// marked corrupt or dirty are parsed: see CheckTrust. The result does not alias
// b. Errors are *Error.
func ParseHeader(b []byte, fileSize int64) (*Header, error) {
	h, err := parseFields(b)
	if err != nil {
		return nil, err
	}
	// QEMU reads zeros beyond the end of a file, so a file that ends within
	// its first cluster has a header all the same.
	cluster := make([]byte, h.ClusterBytes())
	copy(cluster, b)

	if h.HeaderBytes > h.ClusterBytes() {
		return nil, corrupt("header", headerLength, "length %d exceeds the cluster size", h.HeaderBytes)
	}
	if err := h.parseBackingFile(cluster); err != nil {
		return nil, err
	}
	extensionsErr := h.parseExtensions(cluster)
	// An unknown feature may have changed anything, so it is reported before
	// what looks like damage; its name comes from the extensions.
	if unknown := h.Incompatible &^ knownIncompatible; unknown != 0 {
		return nil, unsupported("header", headerIncompatible, "a newer version may know it", "incompatible feature %s", h.featureList(unknown))
	}
	if extensionsErr != nil {
		return nil, extensionsErr
	}
	for _, check := range []func([]byte) error{h.checkEncryption, h.checkFeatures} {
		if err := check(cluster); err != nil {
			return nil, err
		}
	}
	for _, check := range []func(int64) error{h.checkL1, h.checkRefcountTable, h.checkSnapshots, h.checkBitmaps} {
		if err := check(fileSize); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// parseFields reads the fixed fields, and checks those whose meaning does not
// depend on anything else.
func parseFields(b []byte) (*Header, error) {
	be := binary.BigEndian
	if len(b) < 8 || be.Uint32(b) != magic {
		return nil, &Error{Structure: "header", Offset: headerMagic, Err: ErrNotQcow2, Hint: hintRaw}
	}
	h := &Header{Version: be.Uint32(b[headerVersion:])}
	if h.Version != 2 && h.Version != 3 {
		return nil, unsupported("header", headerVersion, "convert the image with `qemu-img convert -O qcow2`", "version %d", h.Version)
	}
	if len(b) < headerBytesV2 || (h.Version == 3 && len(b) < minHeaderBytesV3) {
		return nil, truncated("header", 0, "the file ends after %d bytes", len(b))
	}
	clusterBits := be.Uint32(b[headerClusterBits:])
	if clusterBits < minClusterBits || clusterBits > maxClusterBits {
		return nil, corrupt("header", headerClusterBits, "cluster size 2^%d is not between 2^%d and 2^%d", clusterBits, minClusterBits, maxClusterBits)
	}
	h.ClusterBits = uint8(clusterBits)
	order := uint32(refcountOrderV2)
	h.HeaderBytes = headerBytesV2
	if h.Version == 3 {
		h.Incompatible = be.Uint64(b[headerIncompatible:])
		h.Compatible = be.Uint64(b[headerCompatible:])
		h.Autoclear = be.Uint64(b[headerAutoclear:])
		order = be.Uint32(b[headerRefcountOrder:])
		h.HeaderBytes = int64(be.Uint32(b[headerLength:]))
		if h.HeaderBytes < minHeaderBytesV3 {
			return nil, corrupt("header", headerLength, "length %d is below %d", h.HeaderBytes, minHeaderBytesV3)
		}
	}
	if order > maxRefcountOrder {
		return nil, corrupt("header", headerRefcountOrder, "refcount width 2^%d exceeds 64 bits", order)
	}
	h.RefcountBits = 1 << order
	return h, h.parsePlaces(b)
}

// parsePlaces reads the sizes and offsets of the fixed fields. An offset that
// does not fit an int64 lies beyond any file.
func (h *Header) parsePlaces(b []byte) error {
	be := binary.BigEndian
	h.L1Entries = be.Uint32(b[headerL1Entries:])
	h.RefcountTableClusters = be.Uint32(b[headerRefcountTableClusters:])
	h.SnapshotCount = be.Uint32(b[headerSnapshotCount:])
	for _, field := range []struct {
		name string
		at   int64
		to   *int64
	}{
		{"disk size", headerSize, &h.StoredSizeBytes},
		{"backing file name offset", headerBackingOffset, &h.BackingFileOffset},
		{"L1 table offset", headerL1Offset, &h.L1Offset},
		{"refcount table offset", headerRefcountTableOffset, &h.RefcountTableOffset},
		{"snapshot table offset", headerSnapshotsOffset, &h.SnapshotsOffset},
	} {
		v := be.Uint64(b[field.at:])
		if v > math.MaxInt64 {
			return corrupt("header", field.at, "%s %d is out of range", field.name, v)
		}
		*field.to = int64(v)
	}
	h.SizeBytes = h.StoredSizeBytes &^ (sectorBytes - 1)
	return nil
}

// parseBackingFile reads the name of the backing file. Its offset also ends
// the room for extensions.
func (h *Header) parseBackingFile(cluster []byte) error {
	h.ExtensionsLimit = h.ClusterBytes()
	if h.BackingFileOffset == 0 {
		return nil
	}
	if h.BackingFileOffset > h.ClusterBytes() {
		return corrupt("header", headerBackingOffset, "the backing file's name lies beyond the first cluster, at byte %d", h.BackingFileOffset)
	}
	n := int64(binary.BigEndian.Uint32(cluster[headerBackingBytes:]))
	if n > min(maxBackingNameBytes, h.ClusterBytes()-h.BackingFileOffset) {
		return corrupt("header", headerBackingBytes, "the backing file's name is %d bytes long", n)
	}
	h.ExtensionsLimit = h.BackingFileOffset
	h.BackingFile = untilZero(cluster[h.BackingFileOffset : h.BackingFileOffset+n])
	return nil
}
