package format

import (
	"bytes"
	"reflect"
	"testing"
)

// object is one kind of object with its fixed value: how it is written, and how it
// is read back from any bytes.
type object struct {
	name  string
	bytes []byte
	parse func([]byte) (any, error)
	want  any
}

func fixedObjects(t testing.TB) []object {
	t.Helper()
	at := fixedIdentity(t)
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	d, m, i, a := fixedDescriptor(t), fixedMachine(t), fixedIntent(t), fixedAbort(t)
	ts, v, r, mf := fixedTombstone(t), fixedVerdict(t), fixedRecord(t), fixedManifest(t)
	pack, _ := fixedPack(t)
	mapped, nodes := fixedMap(t)
	return []object{
		{"descriptor", must(AppendDescriptor(nil, d)), func(b []byte) (any, error) { return ParseDescriptor(b, 1) }, d},
		{"machine", must(AppendMachine(nil, m)), func(b []byte) (any, error) { return ParseMachine(b, at.Repository, at.Machine) }, m},
		{"intent", must(AppendIntent(nil, i)), func(b []byte) (any, error) { return ParseIntent(b, at, 1) }, i},
		{"abort", must(AppendAbort(nil, a)), func(b []byte) (any, error) { return ParseAbort(b, at) }, a},
		{"tombstone", must(AppendMark(nil, KindTombstone, ts)), func(b []byte) (any, error) { return ParseMark(b, KindTombstone, at, 0) }, ts},
		{"pin", must(AppendMark(nil, KindPin, fixedPin(t))), func(b []byte) (any, error) { return ParseMark(b, KindPin, at, 1) }, fixedPin(t)},
		{"verdict", must(AppendVerdict(nil, v)), func(b []byte) (any, error) { return ParseVerdict(b, at, 3) }, v},
		{"record", must(AppendRecord(nil, r)), func(b []byte) (any, error) { return ParseRecord(b, at) }, r},
		{"pack", pack.Bytes, func(b []byte) (any, error) { _, _, x, err := ParsePack(b); return x, err }, pack.Index},
		{"leaf", must(AppendNode(nil, fixedLeaf(t))), func(b []byte) (any, error) { return ParseNode(b) }, fixedLeaf(t)},
		{"inner", must(AppendNode(nil, nodes[1].Node)), func(b []byte) (any, error) { return ParseNode(b) }, nodes[1].Node},
		{"map", mapped.Bytes, func(b []byte) (any, error) { _, n, err := ParseMap(b); return n, err }, nodes},
		{"manifest", must(AppendManifest(nil, mf)), func(b []byte) (any, error) { return ParseManifest(b, at) }, mf},
	}
}

func TestEveryObjectComesBackAsItWasWritten(t *testing.T) {
	for _, o := range fixedObjects(t) {
		got, err := o.parse(o.bytes)
		if err != nil {
			t.Errorf("%s: %v", o.name, err)
		} else if !reflect.DeepEqual(got, o.want) {
			t.Errorf("%s came back as\n%+v, want\n%+v", o.name, got, o.want)
		}
	}
}

func TestEveryTruncationOfEveryObjectIsRefused(t *testing.T) {
	for _, o := range fixedObjects(t) {
		for n := range o.bytes {
			if _, err := o.parse(bytes.Clone(o.bytes[:n])); err == nil && o.name != "map" {
				t.Fatalf("%s of %d bytes was accepted when cut to %d", o.name, len(o.bytes), n)
			}
		}
		if _, err := o.parse(append(bytes.Clone(o.bytes), 0)); err == nil {
			t.Errorf("%s was accepted with a byte more", o.name)
		}
	}
}

func TestPackIndexFindsFramesAndHashesByOrdinal(t *testing.T) {
	p, plain := fixedPack(t)
	codec := fixedCodec(t, MinBlockBytes)
	hasher := fixedHasher()
	if p.Index.DataBlocks() != 3 {
		t.Fatalf("%d data blocks", p.Index.DataBlocks())
	}
	for ordinal := range uint32(3) {
		f, ok := p.Index.Frame(ordinal)
		if !ok {
			t.Fatalf("no frame for ordinal %d", ordinal)
		}
		out, err := codec.Decompress(nil, p.Bytes[f.Offset:f.Offset+f.Length], f.Blocks)
		if err != nil {
			t.Fatal(err)
		}
		n := int64(ordinal-f.FirstOrdinal) * MinBlockBytes
		block := out[n : n+MinBlockBytes]
		if !bytes.Equal(block, plain[int64(ordinal)*MinBlockBytes:][:MinBlockBytes]) {
			t.Errorf("block %d differs", ordinal)
		}
		if h, ok := p.Index.Hash(ordinal); !ok || h != hasher.Sum(block) {
			t.Errorf("hash %d differs", ordinal)
		}
	}
	if _, ok := p.Index.Frame(3); ok {
		t.Error("a frame was found beyond the last")
	}
	if _, ok := p.Index.Hash(3); ok {
		t.Error("a hash was found beyond the last")
	}
}
