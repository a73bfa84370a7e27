package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"slices"
	"testing"
	"unsafe"
)

func TestFramesStayWithinOneWindow(t *testing.T) {
	for blockBytes := int64(MinBlockBytes); blockBytes <= MaxBlockBytes; blockBytes *= 2 {
		perWindow := WindowBytes / blockBytes
		for n := int64(0); n <= 17; n++ {
			for _, first := range []int64{0, 1, perWindow - 1, perWindow, 5*perWindow - n, 5 * perWindow, MaxDiskBlocks - n, MaxDiskBlocks, -1} {
				good := n >= 1 && n <= MaxFrameBlocks && first >= 0 && first+n <= MaxDiskBlocks && first%perWindow+n <= perWindow
				w := NewPackWriter(fixedPackHeader(t, 0, blockBytes), 4<<10)
				_, err := w.AppendFrame(Frame{FirstBlock: first, Compressed: []byte("x"), Hashes: make([]BlockHash, n)})
				if good != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
					t.Errorf("%d blocks of %d bytes from %d: %v", n, blockBytes, first, err)
				}
			}
		}
	}
	if FrameBlocks(MinBlockBytes) != 16 || FrameBlocks(DefaultBlockBytes) != 16 || FrameBlocks(MaxBlockBytes) != 1 {
		t.Error("the number of blocks of a frame is wrong")
	}
}

func TestCompressedLengthIsBounded(t *testing.T) {
	w := NewPackWriter(fixedPackHeader(t, 0, MinBlockBytes), 1<<20)
	for _, n := range []int64{0, MaxFrameBytes(MinBlockBytes) + 1} {
		if _, err := w.AppendFrame(Frame{Compressed: make([]byte, n), Hashes: make([]BlockHash, 1)}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := w.AppendFrame(Frame{Compressed: make([]byte, MaxFrameBytes(MinBlockBytes)), Hashes: make([]BlockHash, 1)}); err != nil {
		t.Error(err)
	}
}

func TestPackNeverGrowsBeyondItsLimit(t *testing.T) {
	const limit = 20 << 10
	w := NewPackWriter(fixedPackHeader(t, 5, MinBlockBytes), limit)
	frame := Frame{Compressed: fixedBytes(3, 1000), Hashes: make([]BlockHash, 2)}
	var want uint32
	for {
		fits := w.Fits(2, len(frame.Compressed))
		first, err := w.AppendFrame(frame)
		if fits != (err == nil) {
			t.Fatalf("Fits says %v, AppendFrame %v", fits, err)
		}
		if err != nil {
			if !errors.Is(err, ErrPackFull) {
				t.Fatal(err)
			}
			break
		}
		if first != want {
			t.Fatalf("ordinal %d, want %d", first, want)
		}
		want += 2
	}
	for w.AppendZero(1, int64(w.entries)*2, 1) == nil {
	}
	planned := w.Len()
	p, err := w.Seal()
	if err != nil || len(p.Bytes) > limit || len(p.Bytes) != planned || limit-len(p.Bytes) >= 20 {
		t.Fatalf("%d bytes, planned %d: %v", len(p.Bytes), planned, err)
	}
	if cap(p.Bytes) != limit {
		t.Errorf("the buffer was moved: its capacity is %d", cap(p.Bytes))
	}
}

func TestRangesOfZerosGrowTogetherAndAreSplit(t *testing.T) {
	w := NewPackWriter(fixedPackHeader(t, 0, MinBlockBytes), 1<<20)
	add := func(disk uint16, first, n int64) {
		t.Helper()
		if err := w.AppendZero(disk, first, n); err != nil {
			t.Fatal(err)
		}
	}
	add(0, 0, 10)
	add(0, 10, 5)              // grows
	add(0, 16, 1)              // a gap
	add(1, 17, 1)              // another disk
	add(1, 18, math.MaxUint32) // one more than fits beside the first
	f, _ := letterFrame(1, 0, "A")
	if _, err := w.AppendFrame(f); err != nil {
		t.Fatal(err)
	}
	add(1, 18+math.MaxUint32, 1) // a frame lies between
	p, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	want := []ZeroRange{{0, 0, 15}, {0, 16, 1}, {1, 17, math.MaxUint32}, {1, 17 + math.MaxUint32, 1}, {1, 18 + math.MaxUint32, 1}}
	if got := slices.Collect(p.Index.Zeros()); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, bad := range []ZeroRange{{0, 0, 0}, {0, -1, 1}, {0, MaxDiskBlocks, 1}, {0, 1, math.MaxInt64}} {
		w.Reset(fixedPackHeader(t, 0, MinBlockBytes))
		if err := w.AppendZero(bad.Disk, bad.FirstBlock, bad.Blocks); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestPackWriterReportsBadHeadersAndEndsWithSeal(t *testing.T) {
	good := fixedPackHeader(t, 0, MinBlockBytes)
	for name, change := range map[string]func(h *PackHeader){
		"repository": func(h *PackHeader) { h.Repository = RepositoryID{} },
		"run":        func(h *PackHeader) { h.Run = fixedRun(t, 1); clear(h.Run[:]) },
		"seq":        func(h *PackHeader) { h.Seq = MaxSeq + 1 },
		"block size": func(h *PackHeader) { h.BlockBytes = 12345 },
	} {
		h := good
		change(&h)
		w := NewPackWriter(h, 1<<20)
		if _, err := w.Seal(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, limit := range []int{0, PackHeaderBytes, MaxObjectBytes + 1} {
		w := NewPackWriter(good, limit)
		w.Reset(good)
		if err := w.AppendZero(0, 0, 1); !errors.Is(err, ErrInvalid) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	w := NewPackWriter(good, 1<<20)
	if !w.Empty() {
		t.Error("a fresh pack is not empty")
	}
	if _, err := w.Seal(); err != nil {
		t.Fatal(err)
	}
	f, _ := letterFrame(0, 0, "A")
	if _, err := w.AppendFrame(f); !errors.Is(err, ErrInvalid) {
		t.Errorf("a sealed pack took a frame: %v", err)
	}
	w.Reset(fixedPackHeader(t, 1, MinBlockBytes))
	if first, err := w.AppendFrame(f); err != nil || first != 0 || w.Empty() {
		t.Errorf("after Reset: %d, %v", first, err)
	}
	if p, err := w.Seal(); err != nil || p.Seq != 1 || p.Entry.Seq != 1 {
		t.Errorf("%v, %v", p.Seq, err)
	}
}

func TestPackNamesItself(t *testing.T) {
	at, p := fixedIdentity(t), second2(fixedPack(t))
	h, entry, _, err := ParsePack(p)
	if err != nil || h != fixedPackHeader(t, 3, MinBlockBytes) || entry.Seq != 3 {
		t.Fatalf("%+v, %+v, %v", h, entry, err)
	}
	if err := h.Check(at, 3); err != nil {
		t.Error(err)
	}
	run, repository, machine := at, at, at
	run.Run = fixedRun(t, 9)
	repository.Repository[3] ^= 1
	machine.MachineID[3] ^= 1
	for name, err := range map[string]error{
		"seq": h.Check(at, 4), "run": h.Check(run, 3), "repository": h.Check(repository, 3), "machine": h.Check(machine, 3),
	} {
		if !errors.Is(err, ErrMisplaced) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second2(p SealedPack, _ []byte) []byte { return p.Bytes }

func TestPackIndexIsReadFromTheTailAlone(t *testing.T) {
	p, _ := fixedPack(t)
	got, err := ParsePackIndex(p.Tail, p.Entry, MinBlockBytes)
	if err != nil || !reflect.DeepEqual(got, p.Index) {
		t.Fatalf("%+v, %v", got, err)
	}
	frames := slices.Collect(got.Frames())
	want := []IndexedFrame{
		{Offset: 128, Length: 15, FirstOrdinal: 0, Blocks: 2, Disk: 0, FirstBlock: 62},
		{Offset: 143, Length: 11, FirstOrdinal: 2, Blocks: 1, Disk: 1, FirstBlock: 1 << 40},
	}
	if !reflect.DeepEqual(frames, want) {
		t.Errorf("%+v, want %+v", frames, want)
	}
	for name, change := range map[string]func(e *PackEntry){
		"length":       func(e *PackEntry) { e.Bytes++ },
		"index offset": func(e *PackEntry) { e.IndexOffset-- },
		"hash":         func(e *PackEntry) { e.IndexHash[0] ^= 1 },
		"data blocks":  func(e *PackEntry) { e.DataBlocks++ },
		"many blocks":  func(e *PackEntry) { e.DataBlocks = math.MaxUint32 },
		"seq":          func(e *PackEntry) { e.Seq = MaxSeq + 1 },
		"huge":         func(e *PackEntry) { e.Bytes = math.MaxInt64 },
		"negative":     func(e *PackEntry) { e.Bytes = -1 },
	} {
		e := p.Entry
		change(&e)
		if _, err := ParsePackIndex(p.Tail, e, MinBlockBytes); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	clear(p.Tail)
	if h, ok := got.Hash(0); !ok || h == (BlockHash{}) {
		t.Error("the index shares memory with the tail")
	}
}

// indexOf gives an index of these entries as parseIndexEntries sees it.
func indexOf(dataBlocks, indexOffset uint32, entries ...indexEntry) ([]byte, packFooter) {
	var b []byte
	for _, e := range entries {
		b = e.append(b)
		if e.kind == kindData && e.blocks <= 64 {
			b = append(b, make([]byte, e.blocks*blockHashBytes)...)
		}
	}
	return b, packFooter{indexOffset: indexOffset, indexBytes: uint32(len(b)), entries: uint32(len(entries)), dataBlocks: dataBlocks}
}

func TestIndexesThatBreakARuleAreRefused(t *testing.T) {
	data := indexEntry{kind: kindData, first: 4, blocks: 2, length: 100}
	zero := indexEntry{kind: kindZero, first: 4, blocks: 2}
	if b, f := indexOf(2, 228, data, zero); second(parseIndexEntries(b, f, MinBlockBytes)) != nil {
		t.Fatal("a sound index was refused")
	}
	for name, c := range map[string]struct {
		change func(d, z *indexEntry)
		want   error
	}{
		"flags":            {func(d, _ *indexEntry) { d.flags = 1 }, ErrUnsupported},
		"kind":             {func(d, _ *indexEntry) { d.kind = 3 }, ErrCorrupt},
		"no blocks":        {func(d, _ *indexEntry) { d.blocks = 0 }, ErrCorrupt},
		"17 blocks":        {func(d, _ *indexEntry) { d.blocks = 17 }, ErrCorrupt},
		"many blocks":      {func(d, _ *indexEntry) { d.blocks = math.MaxUint32 }, ErrCorrupt},
		"two windows":      {func(d, _ *indexEntry) { d.first = 63 }, ErrCorrupt},
		"no disk":          {func(d, _ *indexEntry) { d.first = MaxDiskBlocks }, ErrCorrupt},
		"overflow":         {func(d, _ *indexEntry) { d.first = math.MaxUint64 }, ErrCorrupt},
		"no bytes":         {func(d, _ *indexEntry) { d.length = 0 }, ErrCorrupt},
		"other length":     {func(d, _ *indexEntry) { d.length = 101 }, ErrCorrupt},
		"too long":         {func(d, _ *indexEntry) { d.length = math.MaxUint32 }, ErrCorrupt},
		"zero with bytes":  {func(_, z *indexEntry) { z.length = 1 }, ErrCorrupt},
		"zero, no blocks":  {func(_, z *indexEntry) { z.blocks = 0 }, ErrCorrupt},
		"zero beyond disk": {func(_, z *indexEntry) { z.first = MaxDiskBlocks - 1 }, ErrCorrupt},
	} {
		d, z := data, zero
		c.change(&d, &z)
		b, f := indexOf(2, 228, d, z)
		if _, err := parseIndexEntries(b, f, MinBlockBytes); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(f *packFooter){
		"fewer entries":  func(f *packFooter) { f.entries = 1 },
		"more entries":   func(f *packFooter) { f.entries = 3 },
		"many entries":   func(f *packFooter) { f.entries = math.MaxUint32 },
		"fewer blocks":   func(f *packFooter) { f.dataBlocks = 1 },
		"many blocks":    func(f *packFooter) { f.dataBlocks = math.MaxUint32 },
		"other offset":   func(f *packFooter) { f.indexOffset = 227 },
		"hashes missing": func(f *packFooter) { f.entries, f.dataBlocks = 1, 3 },
	} {
		b, f := indexOf(2, 228, data, zero)
		change(&f)
		if _, err := parseIndexEntries(b, f, MinBlockBytes); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPackHeadersThatBreakARuleAreRefused(t *testing.T) {
	p, _ := fixedPack(t)
	put16 := binary.BigEndian.PutUint16
	for name, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"magic":       {func(b []byte) { b[8] = 'X' }, ErrCorrupt},
		"skippable":   {func(b []byte) { b[0] = 0x52 }, ErrCorrupt},
		"length":      {func(b []byte) { b[4]++ }, ErrCorrupt},
		"format":      {func(b []byte) { put16(b[12:], 2) }, ErrUnsupported},
		"flags":       {func(b []byte) { put16(b[14:], 1) }, ErrUnsupported},
		"repository":  {func(b []byte) { clear(b[16:32]) }, ErrCorrupt},
		"machine":     {func(b []byte) { clear(b[32:48]) }, ErrCorrupt},
		"run":         {func(b []byte) { clear(b[48:64]) }, ErrCorrupt},
		"seq":         {func(b []byte) { b[64] = 0xff }, ErrCorrupt},
		"block bytes": {func(b []byte) { b[71] = 1 }, ErrCorrupt},
		"reserved":    {func(b []byte) { b[127] = 1 }, ErrCorrupt},
	} {
		b := bytes.Clone(p.Bytes[:PackHeaderBytes])
		c.change(b)
		if _, err := ParsePackHeader(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSizesInMemoryAreThoseThatCachesCount(t *testing.T) {
	if unsafe.Sizeof(IndexedFrame{}) != 48 || unsafe.Sizeof(ZeroRange{}) != 24 || unsafe.Sizeof(LeafSpan{}) != 48 || unsafe.Sizeof(Child{}) != 72 {
		t.Error("SizeBytes counts other sizes than the compiler")
	}
	p, _ := fixedPack(t)
	if p.Index.SizeBytes() < 3*16+2*48+24 || fixedLeaf(t).SizeBytes() < 4*48 {
		t.Error("SizeBytes counts too little")
	}
}

func BenchmarkSealPack(b *testing.B) {
	frame := Frame{Compressed: fixedBytes(4, 32<<10), Hashes: make([]BlockHash, 1)}
	w := NewPackWriter(fixedPackHeader(b, 0, DefaultBlockBytes), TargetPackBytes)
	b.SetBytes(TargetPackBytes)
	for b.Loop() {
		w.Reset(fixedPackHeader(b, 0, DefaultBlockBytes))
		for w.Fits(1, len(frame.Compressed)) {
			if _, err := w.AppendFrame(frame); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Seal(); err != nil {
			b.Fatal(err)
		}
	}
}
