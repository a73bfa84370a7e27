package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
)

func TestTreeHeightsCoverTheirDisks(t *testing.T) {
	for _, c := range []struct {
		blocks int64
		levels int
	}{
		{-1, 0}, {0, 0}, {1, 1}, {1024, 1}, {1025, 2}, {1 << 20, 2}, {1<<20 + 1, 3}, {1 << 30, 3}, {1<<30 + 1, 4},
		{1 << 40, 4}, {1<<40 + 1, 5}, {MaxDiskBlocks, 5}, {math.MaxInt64, 5},
	} {
		if got := TreeLevels(c.blocks); got != c.levels {
			t.Errorf("%d blocks have %d levels, want %d", c.blocks, got, c.levels)
		}
	}
	if NodeBlocks(0) != 1024 || NodeBlocks(1) != 1<<20 || NodeBlocks(MaxLevels-1) < MaxDiskBlocks {
		t.Error("the blocks of nodes are wrong")
	}
	if Blocks(0, 65536) != 0 || Blocks(1, 65536) != 1 || Blocks(65536, 65536) != 1 || Blocks(65537, 65536) != 2 || Blocks(math.MaxInt64, MinBlockBytes) != MaxDiskBlocks {
		t.Error("the blocks of disks are wrong")
	}
}

func TestNodesAtTheirLimitsComeBack(t *testing.T) {
	full := &Node{FirstBlock: MaxDiskBlocks - NodeFanout}
	inner := &Node{Level: 4}
	for i := range NodeFanout {
		var run ident.RunID
		binary.BigEndian.PutUint64(run[:], uint64(NodeFanout-i)) // descending: the run table has to be sorted
		full.Spans = append(full.Spans, LeafSpan{Start: i, Count: 1, Loc: Location{Run: run, Pack: MaxSeq, Ordinal: MaxPackBlocks - 1}})
		inner.Children = append(inner.Children, Child{Index: i, Ref: NodeRef{Run: run, Object: MaxSeq, Offset: MaxObjectBytes - MinNodeBytes, Length: MinNodeBytes}})
	}
	for name, n := range map[string]*Node{
		"full leaf":  full,
		"full inner": inner,
		"all zero":   {Spans: []LeafSpan{{Count: NodeFanout, Zero: true}}},
		"one span":   {Spans: []LeafSpan{{Start: 1023, Count: 1, Loc: Location{Run: fixedRun(t, 1)}}}},
		"one child":  {Level: 1, Children: []Child{{Index: 1023, Ref: NodeRef{Run: fixedRun(t, 1), Offset: 64, Length: MaxNodeBytes}}}},
	} {
		b, err := AppendNode([]byte("before"), n)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b = b[len("before"):]
		got, err := ParseNode(b)
		if err != nil || !got.equal(n) {
			t.Errorf("%s came back as %+v, %v", name, got, err)
		}
		if len(b) > MaxNodeBytes || len(b) < MinNodeBytes {
			t.Errorf("%s has %d bytes", name, len(b))
		}
	}
	if b, err := AppendNode(nil, inner); err != nil || len(b) != MaxNodeBytes {
		t.Errorf("the largest node has %d bytes, want %d: %v", len(b), MaxNodeBytes, err)
	}
}

func TestNodesThatBreakARuleAreNotWritten(t *testing.T) {
	loc := Location{Run: fixedRun(t, 1)}
	ref := NodeRef{Run: fixedRun(t, 1), Offset: 64, Length: MinNodeBytes}
	with := func(change func(r *NodeRef)) []Child {
		r := ref
		change(&r)
		return []Child{{Ref: r}}
	}
	for name, n := range map[string]*Node{
		"empty leaf":       {},
		"empty inner":      {Level: 1},
		"both":             {Spans: []LeafSpan{{Count: 1, Zero: true}}, Children: []Child{{Ref: ref}}},
		"leaf of children": {Children: []Child{{Ref: ref}}},
		"inner of spans":   {Level: 1, Spans: []LeafSpan{{Count: 1, Zero: true}}},
		"level":            {Level: MaxLevels, Children: []Child{{Ref: ref}}},
		"negative level":   {Level: -1, Children: []Child{{Ref: ref}}},
		"between leaves":   {FirstBlock: 1, Spans: []LeafSpan{{Count: 1, Zero: true}}},
		"between inners":   {Level: 1, FirstBlock: 1024, Children: []Child{{Ref: ref}}},
		"before the disk":  {FirstBlock: -1024, Spans: []LeafSpan{{Count: 1, Zero: true}}},
		"beyond the disk":  {FirstBlock: MaxDiskBlocks, Spans: []LeafSpan{{Count: 1, Zero: true}}},
		"no blocks":        {Spans: []LeafSpan{{Count: 0, Zero: true}}},
		"too many":         {Spans: []LeafSpan{{Count: 1025, Zero: true}}},
		"over the end":     {Spans: []LeafSpan{{Start: 1023, Count: 2, Zero: true}}},
		"overflow":         {Spans: []LeafSpan{{Start: math.MaxInt, Count: 2, Zero: true}}},
		"negative":         {Spans: []LeafSpan{{Start: -1, Count: 2, Zero: true}}},
		"overlap":          {Spans: []LeafSpan{{Count: 2, Zero: true}, {Start: 1, Count: 1, Loc: loc}}},
		"descending":       {Spans: []LeafSpan{{Start: 5, Count: 1, Zero: true}, {Start: 1, Count: 1, Loc: loc}}},
		"data nowhere":     {Spans: []LeafSpan{{Count: 1}}},
		"zero somewhere":   {Spans: []LeafSpan{{Count: 1, Zero: true, Loc: loc}}},
		"pack":             {Spans: []LeafSpan{{Count: 1, Loc: Location{Run: loc.Run, Pack: MaxSeq + 1}}}},
		"ordinal":          {Spans: []LeafSpan{{Count: 2, Loc: Location{Run: loc.Run, Ordinal: MaxPackBlocks - 1}}}},
		"same child":       {Level: 1, Children: []Child{{Index: 1, Ref: ref}, {Index: 1, Ref: ref}}},
		"child 1024":       {Level: 1, Children: []Child{{Index: 1024, Ref: ref}}},
		"child -1":         {Level: 1, Children: []Child{{Index: -1, Ref: ref}}},
		"child nowhere":    {Level: 1, Children: with(func(r *NodeRef) { clear(r.Run[:]) })},
		"child object":     {Level: 1, Children: with(func(r *NodeRef) { r.Object = MaxSeq + 1 })},
		"child in header":  {Level: 1, Children: with(func(r *NodeRef) { r.Offset = 63 })},
		"child beyond":     {Level: 1, Children: with(func(r *NodeRef) { r.Offset = MaxObjectBytes - 1 })},
		"child overflow":   {Level: 1, Children: with(func(r *NodeRef) { r.Offset = math.MaxUint32 })},
		"child too short":  {Level: 1, Children: with(func(r *NodeRef) { r.Length = MinNodeBytes - 1 })},
		"child too long":   {Level: 1, Children: with(func(r *NodeRef) { r.Length = MaxNodeBytes + 1 })},
	} {
		if b, err := AppendNode(nil, n); !errors.Is(err, ErrInvalid) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNodesThatBreakARuleAreNotRead(t *testing.T) {
	leaf := mustBytes(AppendNode(nil, fixedLeaf(t)))
	_, nodes := fixedMap(t)
	inner := mustBytes(AppendNode(nil, nodes[1].Node))
	spans, children := nodeHeaderBytes+2*nodeRunBytes, nodeHeaderBytes+2*nodeRunBytes
	put16 := binary.BigEndian.PutUint16
	for name, c := range map[string]struct {
		b      []byte
		change func(b []byte)
		want   error
	}{
		"magic":          {leaf, func(b []byte) { b[0] = 'X' }, ErrCorrupt},
		"format":         {leaf, func(b []byte) { b[5] = 2 }, ErrUnsupported},
		"flags":          {leaf, func(b []byte) { b[7] = 1 }, ErrUnsupported},
		"level":          {leaf, func(b []byte) { b[6] = 5 }, ErrCorrupt},
		"leaf as inner":  {leaf, func(b []byte) { b[6] = 1 }, ErrCorrupt},
		"first block":    {leaf, func(b []byte) { b[15] = 1 }, ErrCorrupt},
		"length":         {leaf, func(b []byte) { b[23]++ }, ErrCorrupt},
		"fewer runs":     {leaf, func(b []byte) { b[17]-- }, ErrCorrupt},
		"more spans":     {leaf, func(b []byte) { b[19]++ }, ErrCorrupt},
		"run order":      {leaf, func(b []byte) { copy(b[24:40], b[40:56]) }, ErrCorrupt},
		"run zero":       {leaf, func(b []byte) { clear(b[24:40]) }, ErrCorrupt},
		"run unused":     {leaf, func(b []byte) { put16(b[spans+6:], 0) }, ErrCorrupt},
		"run beyond":     {leaf, func(b []byte) { put16(b[spans+6:], 2) }, ErrCorrupt},
		"span kind":      {leaf, func(b []byte) { b[spans+4] = 3 }, ErrCorrupt},
		"span flags":     {leaf, func(b []byte) { b[spans+5] = 1 }, ErrUnsupported},
		"span overlap":   {leaf, func(b []byte) { put16(b[spans+2:], 4) }, ErrCorrupt},
		"zero has place": {leaf, func(b []byte) { b[spans+leafSpanBytes+15] = 1 }, ErrCorrupt},
		"ordinal":        {leaf, func(b []byte) { b[spans+12] = 0xff }, ErrCorrupt},
		"child run":      {inner, func(b []byte) { put16(b[children+2:], 2) }, ErrCorrupt},
		"child order":    {inner, func(b []byte) { put16(b[children:], 1) }, ErrCorrupt},
		"child offset":   {inner, func(b []byte) { b[children+8] = 0xff }, ErrCorrupt},
	} {
		b := bytes.Clone(c.b)
		c.change(b)
		if n, err := ParseNode(b); !errors.Is(err, c.want) || n != nil {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}

func TestNodesInTheWrongPlaceAreNoticed(t *testing.T) {
	n := fixedLeaf(t)
	if err := n.CheckPlace(0, 1024); err != nil {
		t.Error(err)
	}
	if err := n.CheckPlace(0, 2048); !errors.Is(err, ErrMisplaced) {
		t.Error(err)
	}
	if err := n.CheckPlace(1, 1024); !errors.Is(err, ErrMisplaced) {
		t.Error(err)
	}
}

func TestMapObjectsNameThemselvesAndHaveALimit(t *testing.T) {
	at := fixedIdentity(t)
	h := MapHeader{Repository: at.Repository, MachineID: at.MachineID, Run: at.Run, Seq: 7}
	leaf := mustBytes(AppendNode(nil, fixedLeaf(t)))
	w := NewMapWriter(h, MapHeaderBytes+MaxNodeBytes)
	if !w.Empty() {
		t.Error("a fresh map object is not empty")
	}
	count := 0
	for {
		ref, err := w.AppendNode(leaf)
		if errors.Is(err, ErrPackFull) {
			break
		}
		if err != nil || ref.Offset != uint32(MapHeaderBytes+count*len(leaf)) || ref.Object != 7 || ref.Run != at.Run {
			t.Fatalf("%+v, %v", ref, err)
		}
		count++
	}
	planned := w.Len()
	m, err := w.Seal()
	if err != nil || len(m.Bytes) != planned || len(m.Bytes) > MapHeaderBytes+MaxNodeBytes || count < 500 {
		t.Fatalf("%d nodes in %d bytes, %v", count, len(m.Bytes), err)
	}
	if m.Entry != (MapEntry{Seq: 7, Bytes: int64(planned), Hash: SumHash(m.Bytes)}) {
		t.Errorf("%+v", m.Entry)
	}
	got, nodes, err := ParseMap(m.Bytes)
	if err != nil || got != h || len(nodes) != count {
		t.Fatalf("%+v with %d nodes, %v", got, len(nodes), err)
	}
	if err := got.Check(at, 7); err != nil {
		t.Error(err)
	}
	if err := got.Check(at, 8); !errors.Is(err, ErrMisplaced) {
		t.Error(err)
	}
	if _, err := w.AppendNode(leaf); !errors.Is(err, ErrInvalid) {
		t.Errorf("a sealed map object took a node: %v", err)
	}
	for _, limit := range []int{MapHeaderBytes, MaxObjectBytes + 1} {
		if _, err := NewMapWriter(h, limit).AppendNode(leaf); !errors.Is(err, ErrInvalid) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	w = NewMapWriter(h, MaxObjectBytes)
	if _, err := w.AppendNode([]byte("short")); !errors.Is(err, ErrInvalid) {
		t.Errorf("a short node was taken: %v", err)
	}
	if _, err := w.AppendNode(make([]byte, MinNodeBytes)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Seal(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an object with a node of zeros left the process: %v", err)
	}
}

func BenchmarkParseLeaf(b *testing.B) {
	n := &Node{}
	for i := range NodeFanout / 2 {
		n.Spans = append(n.Spans, LeafSpan{Start: 2 * i, Count: 1, Loc: Location{Run: fixedRun(b, byte(i%20)), Ordinal: uint32(i)}})
	}
	raw := mustBytes(AppendNode(nil, n))
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := ParseNode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
