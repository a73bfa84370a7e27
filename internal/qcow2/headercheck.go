package qcow2

import (
	"encoding/binary"
	"fmt"
)

// checkEncryption refuses images that QEMU encrypts, by either way of saying it.
func (h *Header) checkEncryption(cluster []byte) error {
	method := binary.BigEndian.Uint32(cluster[headerCryptMethod:])
	refused := &Error{Structure: "header", Offset: headerCryptMethod, Err: fmt.Errorf("encryption method %d: %w", method, ErrEncrypted),
		Hint: "images encrypted by QEMU cannot be backed up; encrypt inside the guest, or below the image"}
	if method != 0 {
		return refused
	}
	for _, e := range h.Extensions {
		if e.Type == extensionLUKS {
			refused.Structure, refused.Offset = "encryption extension", e.Offset
			return refused
		}
	}
	return nil
}

// checkFeatures checks the features against each other and the cluster size.
func (h *Header) checkFeatures(cluster []byte) error {
	kind := byte(compressionDeflate)
	if h.HeaderBytes > headerCompressionType {
		kind = cluster[headerCompressionType]
	}
	if kind > compressionZstd {
		return unsupported("header", headerCompressionType, "a newer version may know it", "compression type %d", kind)
	}
	if flagged := h.Incompatible&incompatCompression != 0; flagged != (kind != compressionDeflate) {
		return corrupt("header", headerCompressionType, "compression type %d disagrees with its feature bit", kind)
	}
	h.Compression = Compression(kind)
	if h.ExtendedL2() && h.ClusterBits < minExtendedL2ClusterBits {
		return corrupt("header", headerIncompatible, "clusters of %d bytes are too small for extended L2 entries", h.ClusterBytes())
	}
	if h.RawDataFile() && !h.ExternalData() {
		return corrupt("header", headerAutoclear, "a raw external data file is promised, but there is no external data file")
	}
	return nil
}

// featureList names the incompatible feature bits of set, from the image's own
// table where it has them.
func (h *Header) featureList(set uint64) string {
	var list string
	for bit := range 64 {
		if set&(1<<bit) == 0 {
			continue
		}
		name := fmt.Sprintf("bit %d", bit)
		for _, f := range h.FeatureNames {
			if f.Kind == 0 && int(f.Bit) == bit {
				name = fmt.Sprintf("%q (bit %d)", f.Name, bit)
			}
		}
		if list != "" {
			list += ", "
		}
		list += name
	}
	return list
}

// checkTable checks the place of a table that has n bytes at offset: aligned,
// behind the header, and wholly inside the file.
func (h *Header) checkTable(structure string, offset, n, fileSize int64) error {
	if offset&(h.ClusterBytes()-1) != 0 {
		return corrupt(structure, offset, "not aligned to a cluster")
	}
	if offset < h.ClusterBytes() {
		return corrupt(structure, offset, "overlaps the header")
	}
	if offset > fileSize || n > fileSize-offset {
		return truncated(structure, offset, "its %d bytes do not end within the file of %d bytes", n, fileSize)
	}
	return nil
}

// checkL1 checks the place of the active L1 table, and that it is long enough.
func (h *Header) checkL1(fileSize int64) error {
	n := int64(h.L1Entries) * l1EntryBytes
	if n > maxL1Bytes {
		return corrupt("header", headerL1Entries, "the L1 table of %d entries exceeds %d bytes", h.L1Entries, maxL1Bytes)
	}
	// Rounded up without adding first: the size may be close to the largest.
	needed := h.StoredSizeBytes / h.l2Coverage()
	if h.StoredSizeBytes%h.l2Coverage() != 0 {
		needed++
	}
	if needed > int64(h.L1Entries) {
		return corrupt("header", headerL1Entries, "an L1 table of %d entries is too small for a disk of %d bytes", h.L1Entries, h.StoredSizeBytes)
	}
	if n == 0 {
		return nil
	}
	return h.checkTable("L1 table", h.L1Offset, n, fileSize)
}

// checkRefcountTable checks the place of the refcount table. Only its start
// has to be inside the file: nothing here reads it, and its tail may be unused.
func (h *Header) checkRefcountTable(fileSize int64) error {
	if h.RefcountTableClusters == 0 {
		return corrupt("header", headerRefcountTableClusters, "there is no refcount table")
	}
	n := int64(h.RefcountTableClusters) << h.ClusterBits
	if n > maxRefcountTableBytes {
		return corrupt("header", headerRefcountTableClusters, "the refcount table of %d clusters exceeds %d bytes", h.RefcountTableClusters, maxRefcountTableBytes)
	}
	if err := h.checkTable("refcount table", h.RefcountTableOffset, 1, fileSize); err != nil {
		return err
	}
	if l1 := int64(h.L1Entries) * l1EntryBytes; l1 > 0 && h.L1Offset < h.RefcountTableOffset+n && h.RefcountTableOffset < h.L1Offset+l1 {
		return corrupt("refcount table", h.RefcountTableOffset, "overlaps the L1 table at byte %d", h.L1Offset)
	}
	return nil
}

// checkSnapshots checks the place of the snapshot table; its length is known
// only by reading it.
func (h *Header) checkSnapshots(fileSize int64) error {
	if h.SnapshotCount > maxSnapshots {
		return corrupt("header", headerSnapshotCount, "%d snapshots exceed %d", h.SnapshotCount, maxSnapshots)
	}
	if h.SnapshotCount == 0 {
		return nil
	}
	return h.checkTable("snapshot table", h.SnapshotsOffset, int64(h.SnapshotCount)*snapshotFixedBytes, fileSize)
}

// checkBitmaps checks the bitmaps extension as QEMU does, when it is said to be
// valid. Otherwise QEMU drops it unseen, and values that make no sense mean
// that there are no bitmaps.
func (h *Header) checkBitmaps(fileSize int64) error {
	if h.Bitmaps == nil {
		return nil
	}
	err := h.Bitmaps.check(h, fileSize)
	if err != nil && !h.BitmapsValid() {
		h.Bitmaps = nil
		return nil
	}
	return err
}

func (x *BitmapsExtension) check(h *Header, fileSize int64) error {
	if x.Count == 0 || x.Count > maxBitmaps {
		return corrupt("bitmaps extension", x.PayloadOffset, "%d bitmaps are not between 1 and %d", x.Count, maxBitmaps)
	}
	if x.DirectoryBytes <= 0 || x.DirectoryBytes > maxBitmapDirBytes {
		return corrupt("bitmaps extension", x.PayloadOffset+8, "the directory's size of %d bytes is not between 1 and %d", x.DirectoryBytes, maxBitmapDirBytes)
	}
	return h.checkTable("bitmap directory", x.DirectoryOffset, x.DirectoryBytes, fileSize)
}
