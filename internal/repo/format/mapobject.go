package format

import (
	"encoding/binary"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
)

// MapHeader begins a map object and says what it is called. The nodes follow back
// to back; each begins with its own length, and is found by a NodeRef.
//
// Layout, big-endian:
//
//	0    4  "QBMP"
//	4    2  format, 1
//	6    2  flags, 0
//	8   16  repository
//	24  16  machine id
//	40  16  run
//	56   4  seq
//	60   4  reserved, 0
type MapHeader struct {
	Repository RepositoryID
	MachineID  ident.MachineID
	Run        ident.RunID
	Seq        uint32
}

func (h *MapHeader) append(dst []byte) []byte {
	dst = append(dst, mapMagic...)
	dst = binary.BigEndian.AppendUint16(dst, Version)
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = append(dst, h.Repository[:]...)
	dst = append(dst, h.MachineID[:]...)
	dst = append(dst, h.Run[:]...)
	dst = binary.BigEndian.AppendUint32(dst, h.Seq)
	return binary.BigEndian.AppendUint32(dst, 0)
}

func (h *MapHeader) validate() error {
	if h.Repository.IsZero() || h.MachineID.IsZero() || h.Run.IsZero() || h.Seq > MaxSeq {
		return invalid("map header", "repository, machine id or run is missing, or seq %d is above %d", h.Seq, MaxSeq)
	}
	return nil
}

// ParseMapHeader reads the first MapHeaderBytes of a map object; more may follow.
func ParseMapHeader(b []byte) (MapHeader, error) {
	const what = "map header"
	if len(b) < MapHeaderBytes {
		return MapHeader{}, corrupt(what, -1, "%d bytes are fewer than the %d of a header", len(b), MapHeaderBytes)
	}
	if err := checkPreamble(what, b, mapMagic); err != nil {
		return MapHeader{}, err
	}
	h := MapHeader{
		Repository: RepositoryID(b[8:24]),
		MachineID:  ident.MachineID(b[24:40]),
		Run:        ident.RunID(b[40:56]),
		Seq:        binary.BigEndian.Uint32(b[56:]),
	}
	if binary.BigEndian.Uint32(b[60:]) != 0 {
		return MapHeader{}, corrupt(what, 60, "reserved bytes are not zero")
	}
	if err := h.validate(); err != nil {
		return MapHeader{}, corrupt(what, 8, "%v", err)
	}
	return h, nil
}

// Check compares the header with the name that the object was read under; see
// PackHeader.Check.
func (h *MapHeader) Check(at Identity, seq uint32) error {
	return checkName("map object", at, seq, h.Repository, h.MachineID, h.Run, h.Seq)
}

// MapEntry is what a manifest says about a map object.
type MapEntry struct {
	Seq   uint32
	Bytes int64
	Hash  Hash // of the whole object
}

func (e *MapEntry) validate() error {
	if e.Seq > MaxSeq || e.Bytes < MapHeaderBytes || e.Bytes > MaxObjectBytes {
		return corrupt("map entry", -1, "seq %d with %d bytes is out of range", e.Seq, e.Bytes)
	}
	return nil
}

// PlacedNode is a node and where it lies in its map object.
type PlacedNode struct {
	Ref  NodeRef
	Node *Node
}

// ParseMap reads a whole map object: its header and all its nodes in order. It is
// for verification; a reader of points fetches single nodes.
func ParseMap(b []byte) (MapHeader, []PlacedNode, error) {
	if len(b) > MaxObjectBytes {
		return MapHeader{}, nil, corrupt("map object", -1, "%d bytes are too many", len(b))
	}
	h, err := ParseMapHeader(b)
	if err != nil {
		return MapHeader{}, nil, err
	}
	var nodes []PlacedNode
	for at := MapHeaderBytes; at < len(b); {
		nh, err := parseNodeHeader(b[at:])
		if err == nil && int64(nh.length) > int64(len(b)-at) {
			err = corrupt("map node", 20, "it says %d bytes where %d are left", nh.length, len(b)-at)
		}
		if err != nil {
			return MapHeader{}, nil, fmt.Errorf("parse the node at byte %d of the map object: %w", at, err)
		}
		raw := b[at : at+int(nh.length)]
		node, err := ParseNode(raw)
		if err != nil {
			return MapHeader{}, nil, fmt.Errorf("parse the node at byte %d of the map object: %w", at, err)
		}
		ref := NodeRef{Run: h.Run, Object: h.Seq, Offset: uint32(at), Length: nh.length, Hash: SumHash(raw)}
		nodes = append(nodes, PlacedNode{Ref: ref, Node: node})
		at += len(raw)
	}
	return h, nodes, nil
}

// MapWriter builds one map object. It is for one goroutine.
type MapWriter struct {
	header   MapHeader
	capBytes int
	buf      []byte
	err      error
}

// SealedMap is a finished map object; Bytes belongs to the caller.
type SealedMap struct {
	Seq   uint32
	Bytes []byte
	Entry MapEntry // for the manifest
}

// NewMapWriter begins a map object of at most capBytes (MaxObjectBytes at most); the
// buffer grows as needed. Values out of range are reported by the first call that
// can fail.
func NewMapWriter(h MapHeader, capBytes int) *MapWriter {
	w := &MapWriter{header: h, capBytes: capBytes, err: h.validate()}
	if w.err == nil && (capBytes < MapHeaderBytes+MaxNodeBytes || capBytes > MaxObjectBytes) {
		w.err = invalid("map object", "a limit of %d bytes is out of range", capBytes)
	}
	w.buf = h.append(nil)
	return w
}

// Len gives the length of the object so far.
func (w *MapWriter) Len() int { return len(w.buf) }

// Empty reports whether the object has no node yet.
func (w *MapWriter) Empty() bool { return len(w.buf) == MapHeaderBytes }

// AppendNode copies the bytes of a node, made by AppendNode, into the object and
// gives the reference to it. ErrPackFull: nothing was changed, seal this object and
// begin the next.
func (w *MapWriter) AppendNode(node []byte) (NodeRef, error) {
	if w.err != nil {
		return NodeRef{}, w.err
	}
	if len(node) < MinNodeBytes || len(node) > MaxNodeBytes {
		return NodeRef{}, invalid("map object", "%d bytes are not the length of a node", len(node))
	}
	if len(w.buf)+len(node) > w.capBytes {
		return NodeRef{}, fmt.Errorf("append a node of %d bytes: %w", len(node), ErrPackFull)
	}
	ref := NodeRef{Run: w.header.Run, Object: w.header.Seq, Offset: uint32(len(w.buf)), Length: uint32(len(node)), Hash: SumHash(node)}
	w.buf = append(w.buf, node...)
	return ref, nil
}

// Seal ends the object and reads it back.
func (w *MapWriter) Seal() (SealedMap, error) {
	if w.err != nil {
		return SealedMap{}, w.err
	}
	w.err = invalid("map object", "it was sealed")
	header, _, err := ParseMap(w.buf)
	if err == nil && header != w.header {
		err = invalid("map header", "what was read back differs from what was written")
	}
	if err != nil {
		return SealedMap{}, fmt.Errorf("read back map object %d: %w", w.header.Seq, err)
	}
	return SealedMap{
		Seq:   w.header.Seq,
		Bytes: w.buf,
		Entry: MapEntry{Seq: w.header.Seq, Bytes: int64(len(w.buf)), Hash: SumHash(w.buf)},
	}, nil
}
