package format

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
)

// PackHeader is the first thing in a pack: what the pack is called, so that a
// swapped, renamed or misdirected object is noticed, and what a reader without
// the repository needs to take it apart.
type PackHeader struct {
	Repository RepositoryID
	MachineID  ident.MachineID
	Run        ident.RunID
	Seq        uint32
	BlockBytes int64
	// Salt is random for each pack. Nothing uses it yet: when frames are encrypted,
	// it keeps two packs of one name from sharing a key.
	Salt [16]byte
}

// Layout of the header, big-endian but for the first 8 bytes, which are zstd's:
//
//	0    4  magic of a skippable frame, little-endian 0x184D2A51
//	4    4  its length, little-endian 120
//	8    4  "QBPK"
//	12   2  format, 1
//	14   2  flags, 0
//	16  16  repository
//	32  16  machine id
//	48  16  run
//	64   4  seq
//	68   4  block size in bytes
//	72  16  salt
//	88  40  reserved, zeros
func (h *PackHeader) append(dst []byte) []byte {
	dst = appendSkippable(dst, skippableHeaderMagic, PackHeaderBytes-skippableBytes)
	dst = append(dst, packHeaderMagic...)
	dst = binary.BigEndian.AppendUint16(dst, Version)
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = append(dst, h.Repository[:]...)
	dst = append(dst, h.MachineID[:]...)
	dst = append(dst, h.Run[:]...)
	dst = binary.BigEndian.AppendUint32(dst, h.Seq)
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.BlockBytes))
	dst = append(dst, h.Salt[:]...)
	return append(dst, make([]byte, 40)...)
}

func (h *PackHeader) validate() error {
	if err := CheckBlockBytes(h.BlockBytes); err != nil {
		return err
	}
	if h.Repository.IsZero() || h.MachineID.IsZero() || h.Run.IsZero() || h.Seq > MaxSeq {
		return invalid("pack header", "repository, machine id or run is missing, or seq %d is above %d", h.Seq, MaxSeq)
	}
	return nil
}

// ParsePackHeader reads the first PackHeaderBytes of a pack; more may follow.
func ParsePackHeader(b []byte) (PackHeader, error) {
	const what = "pack header"
	if len(b) < PackHeaderBytes {
		return PackHeader{}, corrupt(what, -1, "%d bytes are fewer than the %d of a header", len(b), PackHeaderBytes)
	}
	b = b[:PackHeaderBytes]
	if err := checkSkippable(what, b, skippableHeaderMagic, PackHeaderBytes-skippableBytes); err != nil {
		return PackHeader{}, err
	}
	if err := checkPreamble(what, b[skippableBytes:], packHeaderMagic); err != nil {
		return PackHeader{}, err
	}
	h := PackHeader{
		Repository: RepositoryID(b[16:32]),
		MachineID:  ident.MachineID(b[32:48]),
		Run:        ident.RunID(b[48:64]),
		Seq:        binary.BigEndian.Uint32(b[64:]),
		BlockBytes: int64(binary.BigEndian.Uint32(b[68:])),
		Salt:       [16]byte(b[72:88]),
	}
	if len(bytes.Trim(b[88:], "\x00")) > 0 {
		return PackHeader{}, corrupt(what, 88, "reserved bytes are not zero")
	}
	if err := h.validate(); err != nil {
		return PackHeader{}, corrupt(what, 16, "%v", err)
	}
	return h, nil
}

// Check compares the header with the name that the pack was read under. A zero
// repository or machine id in at is not compared; the machine's name is not in a
// pack.
func (h *PackHeader) Check(at Identity, seq uint32) error {
	return checkName("pack", at, seq, h.Repository, h.MachineID, h.Run, h.Seq)
}

func checkName(what string, at Identity, seq uint32, repository RepositoryID, machine ident.MachineID, run ident.RunID, gotSeq uint32) error {
	switch {
	case run != at.Run || gotSeq != seq:
		return misplaced(what, "it is number %d of run %s, read as number %d of %s", gotSeq, run, seq, at.Run)
	case !at.Repository.IsZero() && repository != at.Repository:
		return misplaced(what, "it is of repository %s, read in %s", repository, at.Repository)
	case !at.MachineID.IsZero() && machine != at.MachineID:
		return misplaced(what, "it is of machine id %s, read under %s", machine, at.MachineID)
	}
	return nil
}

// PackEntry is what a manifest says about a pack. The tail, index and footer, is
// the bytes from IndexOffset to Bytes.
type PackEntry struct {
	Seq         uint32
	Bytes       int64  // of the whole object
	IndexOffset uint32 // where the frames end and the skippable frame with the index begins
	DataBlocks  uint32 // ordinals are 0 to DataBlocks-1
	IndexHash   Hash   // of the index entries alone
}

func (e *PackEntry) validate() error {
	switch {
	case e.Seq > MaxSeq:
		return corrupt("pack entry", -1, "seq %d is above %d", e.Seq, MaxSeq)
	case e.Bytes > MaxObjectBytes || e.IndexOffset < PackHeaderBytes || int64(e.IndexOffset)+MinPackTailBytes > e.Bytes:
		return corrupt("pack entry", -1, "an index at byte %d of %d is out of range", e.IndexOffset, e.Bytes)
	case e.DataBlocks > MaxPackBlocks:
		return corrupt("pack entry", -1, "%d data blocks do not fit a pack", e.DataBlocks)
	}
	return nil
}

// packFooter is the last field of a pack, big-endian:
//
//	0    4  index offset: where its skippable frame begins
//	4    4  length of the index entries
//	8    4  number of index entries
//	12   4  number of data blocks
//	16  32  BLAKE3-256 of the index entries
//	48  32  BLAKE3-256 of all bytes of the pack before this field
//	80   8  "QBPKEND1"
type packFooter struct {
	indexOffset uint32
	indexBytes  uint32
	entries     uint32
	dataBlocks  uint32
	indexHash   Hash
	packHash    Hash
}

func (f *packFooter) appendUnhashed(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, f.indexOffset)
	dst = binary.BigEndian.AppendUint32(dst, f.indexBytes)
	dst = binary.BigEndian.AppendUint32(dst, f.entries)
	dst = binary.BigEndian.AppendUint32(dst, f.dataBlocks)
	return append(dst, f.indexHash[:]...)
}

// footerHashAt is where in the footer the hash of all before it lies.
const footerHashAt = 48

func parsePackFooter(b []byte) (packFooter, error) {
	const what = "pack footer"
	if len(b) != PackFooterBytes {
		return packFooter{}, corrupt(what, -1, "%d bytes are not the %d of a footer", len(b), PackFooterBytes)
	}
	if string(b[80:]) != packFooterMagic {
		return packFooter{}, corrupt(what, 80, "it does not end in %q: truncated, or no pack", packFooterMagic)
	}
	return packFooter{
		indexOffset: binary.BigEndian.Uint32(b),
		indexBytes:  binary.BigEndian.Uint32(b[4:]),
		entries:     binary.BigEndian.Uint32(b[8:]),
		dataBlocks:  binary.BigEndian.Uint32(b[12:]),
		indexHash:   Hash(b[16:48]),
		packHash:    Hash(b[48:80]),
	}, nil
}

// ParsePack reads a whole pack and checks everything but the contents of frames:
// header, index, footer, and the hash over all bytes. It needs nothing but the
// object; the caller compares the header with the key (Check) and the entry with
// the manifest's.
func ParsePack(b []byte) (PackHeader, PackEntry, *PackIndex, error) {
	if len(b) > MaxObjectBytes || len(b) < PackHeaderBytes+MinPackTailBytes {
		return PackHeader{}, PackEntry{}, nil, corrupt("pack", -1, "%d bytes are not the length of a pack", len(b))
	}
	footerAt := len(b) - PackFooterBytes
	f, err := parsePackFooter(b[footerAt:])
	if err != nil {
		return PackHeader{}, PackEntry{}, nil, fmt.Errorf("parse the footer at byte %d: %w", footerAt, err)
	}
	if SumHash(b[:footerAt+footerHashAt]) != f.packHash {
		return PackHeader{}, PackEntry{}, nil, corrupt("pack", footerAt+footerHashAt, "the hash in the footer does not match the bytes before it")
	}
	return parsePackParts(b, f)
}

// parsePackParts is ParsePack without the hash over everything, which a writer has
// just computed itself.
func parsePackParts(b []byte, f packFooter) (PackHeader, PackEntry, *PackIndex, error) {
	h, err := ParsePackHeader(b)
	if err != nil {
		return PackHeader{}, PackEntry{}, nil, err
	}
	e := PackEntry{Seq: h.Seq, Bytes: int64(len(b)), IndexOffset: f.indexOffset, DataBlocks: f.dataBlocks, IndexHash: f.indexHash}
	if err := e.validate(); err != nil {
		return PackHeader{}, PackEntry{}, nil, err
	}
	x, err := ParsePackIndex(b[e.IndexOffset:], e, h.BlockBytes)
	if err != nil {
		return PackHeader{}, PackEntry{}, nil, err
	}
	return h, e, x, nil
}

func appendSkippable(dst []byte, magic uint32, length int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, magic)
	return binary.LittleEndian.AppendUint32(dst, uint32(length))
}

func checkSkippable(what string, b []byte, magic uint32, length int) error {
	if binary.LittleEndian.Uint32(b) != magic {
		return corrupt(what, 0, "it does not begin with the skippable frame %#x", magic)
	}
	if got := binary.LittleEndian.Uint32(b[4:]); uint64(got) != uint64(length) {
		return corrupt(what, 4, "its skippable frame says %d bytes where %d follow", got, length)
	}
	return nil
}

// checkPreamble reads the 8 bytes that begin each binary object: magic, format,
// flags. All flags are for later: one that is set stops this program.
func checkPreamble(what string, b []byte, magic string) error {
	if string(b[:4]) != magic {
		return corrupt(what, 0, "it does not begin with %q", magic)
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != Version {
		return unsupported(what, "it has format %d, this program reads %d", v, Version)
	}
	if flags := binary.BigEndian.Uint16(b[6:]); flags != 0 {
		return unsupported(what, "it has the flags %#x, which this program does not know", flags)
	}
	return nil
}
