package format

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
)

// Node is one node of a disk's map. A leaf has Spans and no Children, an inner node
// the reverse. Nodes carry the ids of all runs they refer to, so any two points can
// share one.
type Node struct {
	Level      int   // 0: leaf
	FirstBlock int64 // of the range it covers, a multiple of NodeBlocks(Level)
	Spans      []LeafSpan
	Children   []Child
}

// LeafSpan says what a range of blocks is. Start counts from the node's FirstBlock.
// Blocks that no span covers read as zero.
type LeafSpan struct {
	Start, Count int
	Zero         bool
	Loc          Location // of the first block; the ordinals of the others follow. Zero value when Zero
}

// Child refers to the node that covers the Index-th part of an inner node's range.
// A part without a child reads as zero.
type Child struct {
	Index int
	Ref   NodeRef
}

// Layout of a node, big-endian:
//
//	0    4  "QBND"
//	4    2  format, 1
//	6    1  level
//	7    1  flags, 0
//	8    8  first block
//	16   2  number of runs
//	18   2  number of spans or children
//	20   4  length of the node
//	24  16  each run, ascending
//
// then for each span of a leaf, ascending by start:
//
//	0    2  start
//	2    2  number of blocks
//	4    1  kind: 1 DATA, 2 ZERO
//	5    1  flags, 0
//	6    2  index into the runs; 0 for ZERO
//	8    4  pack; 0 for ZERO
//	12   4  ordinal; 0 for ZERO
//
// or for each child of an inner node, ascending by index:
//
//	0    2  index
//	2    2  index into the runs
//	4    4  map object
//	8    4  offset in it
//	12   4  length
//	16  32  BLAKE3-256 of the child
//
// Level and first block say where the node belongs: one that was put in the place
// of another is noticed even by who trusts its hash.

// AppendNode appends the bytes of a node. The run table is made here, from the
// runs that spans and children name.
func AppendNode(dst []byte, n *Node) ([]byte, error) {
	if err := n.validate(); err != nil {
		return nil, invalid("map node", "%v", err)
	}
	runs := n.Runs()
	start := len(dst)
	length := nodeHeaderBytes + len(runs)*nodeRunBytes + len(n.Spans)*leafSpanBytes + len(n.Children)*childBytes
	dst = append(dst, nodeMagic...)
	dst = binary.BigEndian.AppendUint16(dst, Version)
	dst = append(dst, byte(n.Level), 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(n.FirstBlock))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(runs)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(n.Spans)+len(n.Children)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(length))
	for i := range runs {
		dst = append(dst, runs[i][:]...)
	}
	for i := range n.Spans {
		dst = appendSpan(dst, &n.Spans[i], runs)
	}
	for i := range n.Children {
		dst = appendChild(dst, &n.Children[i], runs)
	}
	back, err := ParseNode(dst[start:])
	if err != nil {
		return nil, fmt.Errorf("read back a map node: %w", err)
	}
	if !back.equal(n) {
		return nil, invalid("map node", "what was read back differs from what was written")
	}
	return dst, nil
}

func appendSpan(dst []byte, s *LeafSpan, runs []ident.RunID) []byte {
	kind, run := byte(spanZero), 0
	if !s.Zero {
		kind = spanData
		run, _ = slices.BinarySearchFunc(runs, s.Loc.Run, ident.RunID.Compare)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(s.Start))
	dst = binary.BigEndian.AppendUint16(dst, uint16(s.Count))
	dst = append(dst, kind, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(run))
	dst = binary.BigEndian.AppendUint32(dst, s.Loc.Pack)
	return binary.BigEndian.AppendUint32(dst, s.Loc.Ordinal)
}

func appendChild(dst []byte, c *Child, runs []ident.RunID) []byte {
	run, _ := slices.BinarySearchFunc(runs, c.Ref.Run, ident.RunID.Compare)
	dst = binary.BigEndian.AppendUint16(dst, uint16(c.Index))
	dst = binary.BigEndian.AppendUint16(dst, uint16(run))
	dst = binary.BigEndian.AppendUint32(dst, c.Ref.Object)
	dst = binary.BigEndian.AppendUint32(dst, c.Ref.Offset)
	dst = binary.BigEndian.AppendUint32(dst, c.Ref.Length)
	return append(dst, c.Ref.Hash[:]...)
}

// ParseNode reads a node that is exactly b. The hash in the reference to it is
// checked before, by NodeRef.Verify, and its place after, by CheckPlace.
func ParseNode(b []byte) (*Node, error) {
	const what = "map node"
	h, err := parseNodeHeader(b)
	if err != nil {
		return nil, err
	}
	if int64(h.length) != int64(len(b)) {
		return nil, corrupt(what, 20, "it says %d bytes where %d are", h.length, len(b))
	}
	entryBytes := leafSpanBytes
	if h.level > 0 {
		entryBytes = childBytes
	}
	if want := nodeHeaderBytes + h.runs*nodeRunBytes + h.entries*entryBytes; want != len(b) {
		return nil, corrupt(what, 16, "%d runs and %d entries take %d bytes where %d are", h.runs, h.entries, want, len(b))
	}
	runs := make([]ident.RunID, h.runs)
	at := nodeHeaderBytes
	for i := range runs {
		runs[i] = ident.RunID(b[at:])
		if runs[i].IsZero() || i > 0 && runs[i-1].Compare(runs[i]) >= 0 {
			return nil, corrupt(what, at, "the runs do not ascend")
		}
		at += nodeRunBytes
	}
	n := &Node{Level: h.level, FirstBlock: h.firstBlock}
	used := make([]bool, len(runs))
	if n.Level == 0 {
		err = n.parseSpans(b, at, runs, used)
	} else {
		err = n.parseChildren(b, at, runs, used)
	}
	if err != nil {
		return nil, err
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, corrupt(what, nodeHeaderBytes+i*nodeRunBytes, "nothing refers to run %s", runs[i])
	}
	if err := n.validate(); err != nil {
		return nil, corrupt(what, -1, "%v", err)
	}
	return n, nil
}

type nodeHeader struct {
	level, runs, entries int
	firstBlock           int64
	length               uint32
}

func parseNodeHeader(b []byte) (nodeHeader, error) {
	const what = "map node"
	if len(b) < nodeHeaderBytes {
		return nodeHeader{}, corrupt(what, -1, "%d bytes are fewer than the %d of a header", len(b), nodeHeaderBytes)
	}
	if string(b[:4]) != nodeMagic {
		return nodeHeader{}, corrupt(what, 0, "it does not begin with %q", nodeMagic)
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != Version {
		return nodeHeader{}, unsupported(what, "it has format %d, this program reads %d", v, Version)
	}
	if b[7] != 0 {
		return nodeHeader{}, unsupported(what, "it has the flags %#x, which this program does not know", b[7])
	}
	first := binary.BigEndian.Uint64(b[8:])
	h := nodeHeader{
		level:      int(b[6]),
		firstBlock: int64(first),
		runs:       int(binary.BigEndian.Uint16(b[16:])),
		entries:    int(binary.BigEndian.Uint16(b[18:])),
		length:     binary.BigEndian.Uint32(b[20:]),
	}
	switch {
	case h.level >= MaxLevels:
		return nodeHeader{}, corrupt(what, 6, "level %d is above %d", h.level, MaxLevels-1)
	case first >= MaxDiskBlocks || h.firstBlock%NodeBlocks(h.level) != 0:
		return nodeHeader{}, corrupt(what, 8, "no node of level %d begins at block %d", h.level, first)
	case h.runs > NodeFanout || h.entries > NodeFanout || h.entries == 0:
		return nodeHeader{}, corrupt(what, 16, "%d runs and %d entries are out of range", h.runs, h.entries)
	case h.length < MinNodeBytes || h.length > MaxNodeBytes:
		return nodeHeader{}, corrupt(what, 20, "a length of %d bytes is out of range", h.length)
	}
	return h, nil
}

func (n *Node) parseSpans(b []byte, at int, runs []ident.RunID, used []bool) error {
	const what = "map leaf"
	n.Spans = make([]LeafSpan, (len(b)-at)/leafSpanBytes)
	for i := range n.Spans {
		e := b[at : at+leafSpanBytes]
		s := &n.Spans[i]
		s.Start, s.Count = int(binary.BigEndian.Uint16(e)), int(binary.BigEndian.Uint16(e[2:]))
		run := int(binary.BigEndian.Uint16(e[6:]))
		pack, ordinal := binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint32(e[12:])
		if e[5] != 0 {
			return unsupported(what, "span %d has the flags %#x, which this program does not know", i, e[5])
		}
		switch e[4] {
		case spanZero:
			if run != 0 || pack != 0 || ordinal != 0 {
				return corrupt(what, at+6, "a ZERO span has a place")
			}
			s.Zero = true
		case spanData:
			if run >= len(runs) {
				return corrupt(what, at+6, "run %d of %d", run, len(runs))
			}
			used[run] = true
			s.Loc = Location{Run: runs[run], Pack: pack, Ordinal: ordinal}
		default:
			return corrupt(what, at+4, "unknown kind %d", e[4])
		}
		at += leafSpanBytes
	}
	return nil
}

func (n *Node) parseChildren(b []byte, at int, runs []ident.RunID, used []bool) error {
	const what = "inner map node"
	n.Children = make([]Child, (len(b)-at)/childBytes)
	for i := range n.Children {
		e := b[at : at+childBytes]
		run := int(binary.BigEndian.Uint16(e[2:]))
		if run >= len(runs) {
			return corrupt(what, at+2, "run %d of %d", run, len(runs))
		}
		used[run] = true
		n.Children[i] = Child{Index: int(binary.BigEndian.Uint16(e)), Ref: NodeRef{
			Run:    runs[run],
			Object: binary.BigEndian.Uint32(e[4:]),
			Offset: binary.BigEndian.Uint32(e[8:]),
			Length: binary.BigEndian.Uint32(e[12:]),
			Hash:   Hash(e[16:48]),
		}}
		at += childBytes
	}
	return nil
}

// validate checks order, ranges and overflow; Append and Parse both rely on it.
func (n *Node) validate() error {
	const what = "map node"
	switch {
	case n.Level < 0 || n.Level >= MaxLevels:
		return corrupt(what, 6, "level %d is out of range", n.Level)
	case n.FirstBlock < 0 || n.FirstBlock >= MaxDiskBlocks || n.FirstBlock%NodeBlocks(n.Level) != 0:
		return corrupt(what, 8, "no node of level %d begins at block %d", n.Level, n.FirstBlock)
	case n.Level == 0 && (len(n.Children) > 0 || len(n.Spans) == 0 || len(n.Spans) > NodeFanout):
		return corrupt(what, 18, "a leaf has %d spans and %d children", len(n.Spans), len(n.Children))
	case n.Level > 0 && (len(n.Spans) > 0 || len(n.Children) == 0 || len(n.Children) > NodeFanout):
		return corrupt(what, 18, "an inner node has %d spans and %d children", len(n.Spans), len(n.Children))
	}
	end := 0
	for i, s := range n.Spans {
		if s.Start < end || s.Count < 1 || s.Start > NodeFanout || s.Count > NodeFanout-s.Start {
			return corrupt(what, -1, "span %d of blocks %d+%d overlaps the one before or the end", i, s.Start, s.Count)
		}
		end = s.Start + s.Count
		if s.Zero && s.Loc != (Location{}) {
			return corrupt(what, -1, "span %d is zero and has a place", i)
		}
		if !s.Zero && (s.Loc.Run.IsZero() || s.Loc.Pack > MaxSeq || uint64(s.Loc.Ordinal)+uint64(s.Count) > MaxPackBlocks) {
			return corrupt(what, -1, "span %d of %d blocks at %s is out of range", i, s.Count, s.Loc)
		}
	}
	next := 0
	for i, c := range n.Children {
		if c.Index < next || c.Index >= NodeFanout {
			return corrupt(what, -1, "child %d has the index %d", i, c.Index)
		}
		next = c.Index + 1
		if err := c.Ref.validate(); err != nil {
			return fmt.Errorf("check child %d: %w", c.Index, err)
		}
	}
	return nil
}

// CheckPlace compares the node with the place it was read for.
func (n *Node) CheckPlace(level int, firstBlock int64) error {
	if n.Level != level || n.FirstBlock != firstBlock {
		return misplaced("map node", "it is of level %d at block %d, read for level %d at block %d", n.Level, n.FirstBlock, level, firstBlock)
	}
	return nil
}

// Runs gives the runs that the node refers to itself, ascending, each once.
func (n *Node) Runs() []ident.RunID {
	var runs []ident.RunID
	add := func(r ident.RunID) {
		// Neighbours mostly name the same run: this keeps the list short.
		if len(runs) == 0 || runs[len(runs)-1] != r {
			runs = append(runs, r)
		}
	}
	for i := range n.Spans {
		if !n.Spans[i].Zero {
			add(n.Spans[i].Loc.Run)
		}
	}
	for i := range n.Children {
		add(n.Children[i].Ref.Run)
	}
	slices.SortFunc(runs, ident.RunID.Compare)
	return slices.Compact(runs)
}

// SizeBytes gives the memory that the node takes, for caches with a budget.
func (n *Node) SizeBytes() int64 {
	return 80 + int64(cap(n.Spans))*48 + int64(cap(n.Children))*72
}

func (n *Node) equal(o *Node) bool {
	return n.Level == o.Level && n.FirstBlock == o.FirstBlock &&
		slices.Equal(n.Spans, o.Spans) && slices.Equal(n.Children, o.Children)
}
