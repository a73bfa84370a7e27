package format

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// The values of this file are fixed: golden files are made of them.

func fixedBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func fixedTime() time.Time { return time.Date(2026, 11, 22, 10, 11, 12, 345_000_000, time.UTC) }

// fixedRun gives run ids that ascend with n.
func fixedRun(t testing.TB, n byte) ident.RunID {
	t.Helper()
	r, err := ident.NewRunID(fixedTime().Add(time.Duration(n)*time.Hour), rand.NewChaCha8([32]byte{n}))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fixedIdentity(t testing.TB) Identity {
	return Identity{
		Repository: RepositoryID(fixedBytes(101, 16)),
		Machine:    "web-1",
		MachineID:  ident.MachineID(fixedBytes(102, 16)),
		Run:        fixedRun(t, 2),
	}
}

func fixedNonce() Nonce { return Nonce(fixedBytes(103, 16)) }

func fixedDescriptor(testing.TB) *Descriptor {
	return &Descriptor{
		Repository: RepositoryID(fixedBytes(101, 16)), Generation: 1, Created: fixedTime(),
		BlockBytes: DefaultBlockBytes, HashKey: HashKey(fixedBytes(104, 32)), Codec: CodecZstd, Tool: "qbackup 0.1",
		Optional: []string{"hint"},
	}
}

func fixedMachine(t testing.TB) *Machine {
	i := fixedIdentity(t)
	return &Machine{
		Repository: i.Repository, Name: i.Machine, ID: i.MachineID, Created: fixedTime(), FirstHost: "host-a",
		UUID:  "8b9f2c1e-7c2f-4f5e-9a57-0d8c7ad1b0a3",
		Disks: []MachineDisk{{Name: "vda", Path: "/var/lib/images/web-1.qcow2", Format: "qcow2", SizeBytes: 100 << 20}},
		Tool:  "qbackup 0.1",
	}
}

func fixedIntent(t testing.TB) *Intent {
	return &Intent{
		Identity: fixedIdentity(t), Number: 1, Kind: IntentBackup, Bases: []Base{{Disk: "vda", Run: fixedRun(t, 1)}},
		Host: "host-a", BootID: "0c4e7a52-5a4f-4f0e-bd5c-6f6d1e0c8a11", Nonce: fixedNonce(), Time: fixedTime(), Tool: "qbackup 0.1",
	}
}

func fixedAbort(t testing.TB) *Abort {
	return &Abort{Identity: fixedIdentity(t), Nonce: fixedNonce(), By: "the next run", Host: "host-b", Time: fixedTime()}
}

func fixedTombstone(t testing.TB) *Mark {
	return &Mark{Identity: fixedIdentity(t), Nonce: fixedNonce(), By: "forget", Host: "host-b", Reason: "older than 30 days", Time: fixedTime()}
}

func fixedPin(t testing.TB) *Mark {
	return &Mark{Identity: fixedIdentity(t), Number: 1, Nonce: fixedNonce(), By: "unpin", Host: "host-b", Time: fixedTime()}
}

func fixedVerdict(t testing.TB) *Verdict {
	i := fixedIdentity(t)
	return &Verdict{
		Identity: i, Number: 3, Level: "data", Time: fixedTime(), Host: "host-b", Tool: "qbackup 0.1",
		Damage: []Finding{{Key: PackKey(i.Machine, i.Run, 7), Offset: 128, Length: 4096, Error: "the hash differs"}},
	}
}

func fixedRecord(t testing.TB) *Record {
	_, m := fixedMap(t)
	manifest := fixedManifestBytes(t)
	top := LayerFacts{
		Role: "top", Path: "/var/lib/images/web-1.qcow2", Format: "qcow2", Device: 2049, Inode: 1 << 60, FileBytes: 5 << 20, DiskBytes: 100 << 20,
		ModifiedNanos: 1_795_342_272_345_678_901, ChangedNanos: 1_795_342_272_345_678_902, Header: SumHash([]byte("header")),
	}
	return &Record{
		Identity: fixedIdentity(t), Nonce: fixedNonce(), Time: fixedTime(), Started: fixedTime().Add(-time.Second),
		Consistency: ConsistencyOffline, BlockBytes: DefaultBlockBytes,
		Disks: []DiskRecord{
			{
				Name: "vda", Mode: ModeIncremental, Base: fixedRun(t, 1), SizeBytes: 100 << 20,
				Image: ImageFacts{
					Path: top.Path, Format: "qcow2", Device: 2049, Inode: 1 << 60, FileBytes: 5 << 20, ClusterBytes: 65536,
					GranularityBytes: 65536, ActiveL1: SumHash([]byte("l1")), Chain: []LayerFacts{top},
				},
				Map:        MapRoot{Node: m[len(m)-1].Ref, Levels: 2, RunsSinceRewrite: 1},
				DirtyBytes: 5 << 16, ReadBytes: 5 << 16, ZeroBytes: 1 << 16, SkippedBytes: 1 << 16, StoredBytes: 777,
			},
			{Name: "vdb", Ordinal: 1, Mode: ModeMissing, Reason: "in use", Error: "the image is held by process 4711"},
		},
		Manifest: Reference{Bytes: int64(len(manifest)), Hash: SumHash(manifest)},
		Host:     "host-a", Tool: "qbackup 0.1", QEMU: "7.2.22",
	}
}

// recordWithExtras is fixedRecord with what a point of a libvirt domain has besides.
func recordWithExtras(t testing.TB) *Record {
	r := fixedRecord(t)
	r.Extras = &Extras{Files: []ExtraFile{{Name: "domain.xml", Bytes: 4711}, {Name: "nvram", Bytes: 540672}}, Map: r.Disks[0].Map}
	return r
}

func fixedCodec(t testing.TB, blockBytes int64) *Codec {
	t.Helper()
	c, err := NewCodec(blockBytes, 2)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func fixedHasher() *BlockHasher { return NewBlockHasher(HashKey(fixedBytes(104, 32))) }

// letterFrame gives a frame of one block of 16 KiB for each letter, full of that
// letter, and its plain bytes. The zstd frame (RFC 8878) is written by hand, one
// RLE block for each letter, so that golden files do not depend on a compressor.
func letterFrame(disk uint16, first int64, letters string) (Frame, []byte) {
	size := len(letters) * MinBlockBytes
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x60} // magic; single segment, 2 bytes of size
	frame = binary.LittleEndian.AppendUint16(frame, uint16(size-256))
	f := Frame{Disk: disk, FirstBlock: first}
	var plain []byte
	for i := range len(letters) {
		head := uint32(MinBlockBytes<<3 | 1<<1) // RLE
		if i == len(letters)-1 {
			head |= 1 // last block
		}
		frame = append(frame, byte(head), byte(head>>8), byte(head>>16), letters[i])
		block := bytes.Repeat([]byte(letters[i:i+1]), MinBlockBytes)
		f.Hashes = append(f.Hashes, fixedHasher().Sum(block))
		plain = append(plain, block...)
	}
	f.Compressed = frame
	return f, plain
}

func fixedPackHeader(t testing.TB, seq uint32, blockBytes int64) PackHeader {
	i := fixedIdentity(t)
	return PackHeader{Repository: i.Repository, MachineID: i.MachineID, Run: i.Run, Seq: seq, BlockBytes: blockBytes, Salt: [16]byte(fixedBytes(105, 16))}
}

// fixedPack gives a pack of two frames with a range of zeros between, and what the
// frames hold.
func fixedPack(t testing.TB) (SealedPack, []byte) {
	t.Helper()
	w := NewPackWriter(fixedPackHeader(t, 3, MinBlockBytes), 1<<20)
	f1, plain1 := letterFrame(0, 62, "AB")
	f2, plain2 := letterFrame(1, 1<<40, "C")
	if n, err := w.AppendFrame(f1); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	if err := w.AppendZero(0, 64, 1000); err != nil {
		t.Fatal(err)
	}
	if n, err := w.AppendFrame(f2); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	p, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	return p, append(plain1, plain2...)
}

func fixedLeaf(t testing.TB) *Node {
	return &Node{FirstBlock: 1024, Spans: []LeafSpan{
		{Start: 0, Count: 3, Loc: Location{Run: fixedRun(t, 2), Pack: 3, Ordinal: 0}},
		{Start: 3, Count: 10, Zero: true},
		{Start: 13, Count: 1, Loc: Location{Run: fixedRun(t, 1), Pack: 0, Ordinal: 4711}},
		{Start: 1023, Count: 1, Zero: true},
	}}
}

func fixedInner(t testing.TB, leaf NodeRef) *Node {
	other := NodeRef{Run: fixedRun(t, 1), Object: 5, Offset: 64, Length: 120, Hash: SumHash([]byte("a leaf elsewhere"))}
	return &Node{Level: 1, Children: []Child{{Index: 0, Ref: other}, {Index: 1, Ref: leaf}}}
}

// fixedMap gives a map object of a leaf and its parent.
func fixedMap(t testing.TB) (SealedMap, []PlacedNode) {
	t.Helper()
	i := fixedIdentity(t)
	w := NewMapWriter(MapHeader{Repository: i.Repository, MachineID: i.MachineID, Run: i.Run, Seq: 1}, 1<<20)
	leaf := placeNode(t, w, fixedLeaf(t))
	inner := placeNode(t, w, fixedInner(t, leaf.Ref))
	m, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	return m, []PlacedNode{leaf, inner}
}

func placeNode(t testing.TB, w *MapWriter, n *Node) PlacedNode {
	t.Helper()
	b, err := AppendNode(nil, n)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := w.AppendNode(b)
	if err != nil {
		t.Fatal(err)
	}
	return PlacedNode{Ref: ref, Node: n}
}

func fixedManifest(t testing.TB) *Manifest {
	i := fixedIdentity(t)
	p, _ := fixedPack(t)
	m, _ := fixedMap(t)
	return &Manifest{
		Repository: i.Repository, MachineID: i.MachineID, Run: i.Run,
		Packs: []PackEntry{p.Entry}, Maps: []MapEntry{m.Entry},
		Runs: []Dependency{{Run: fixedRun(t, 1), Manifest: SumHash([]byte("the manifest of another run"))}},
	}
}

func fixedManifestBytes(t testing.TB) []byte {
	t.Helper()
	b, err := AppendManifest(nil, fixedManifest(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
