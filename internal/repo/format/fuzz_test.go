package format

import (
	"bytes"
	"errors"
	"testing"
)

// classified fails when an error does not say what kind of trouble it is.
func classified(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrMisplaced) {
		t.Fatalf("an error without a class: %v", err)
	}
}

func FuzzParseDocument(f *testing.F) {
	for _, o := range fixedObjects(f) {
		if first, rest, ok := bytes.Cut(o.bytes, []byte("\n")); ok && bytes.HasPrefix(first, []byte("qbackup ")) {
			body, _, _ := bytes.Cut(rest, []byte("\n"))
			f.Add(string(first), string(body), true)
		}
	}
	f.Add("qbackup record 1", `{"disks":[{"map":{"levels":-1}}]}`, true)
	at := fixedIdentity(f)
	f.Fuzz(func(t *testing.T, first, body string, sealed bool) {
		b := []byte(first + "\n" + body + "\n")
		if sealed {
			b = seal(first, body)
		}
		_, err := DocumentKind(b)
		classified(t, err)
		r, a, err := ParseSlot(b, at)
		classified(t, err)
		if r != nil {
			if _, err := AppendRecord(nil, r); err != nil && !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
		}
		if a != nil && a.Identity != at {
			t.Fatal("an abort of another run was accepted")
		}
		classified(t, second(ParseDescriptor(b, 1)))
		classified(t, second(ParseMachine(b, at.Repository, at.Machine)))
		classified(t, second(ParseIntent(b, at, 1)))
		classified(t, second(ParseMark(b, KindTombstone, at, 0)))
		classified(t, second(ParseVerdict(b, at, 3)))
	})
}

func FuzzParsePackIndex(f *testing.F) {
	p, _ := fixedPack(f)
	f.Add(p.Tail[skippableBytes:len(p.Tail)-PackFooterBytes], uint32(3), uint32(3), p.Entry.IndexOffset)
	f.Add([]byte{}, uint32(0), uint32(0), uint32(PackHeaderBytes))
	f.Fuzz(func(t *testing.T, entries []byte, count, dataBlocks, indexOffset uint32) {
		if len(entries) > 1<<16 {
			return
		}
		footer := packFooter{indexOffset: indexOffset, indexBytes: uint32(len(entries)), entries: count, dataBlocks: dataBlocks, indexHash: SumHash(entries)}
		tail := appendSkippable(nil, skippableIndexMagic, len(entries)+PackFooterBytes)
		tail = footer.appendUnhashed(append(tail, entries...))
		tail = append(append(tail, make([]byte, 32)...), packFooterMagic...)
		e := PackEntry{Bytes: int64(indexOffset) + int64(len(tail)), IndexOffset: indexOffset, DataBlocks: dataBlocks, IndexHash: footer.indexHash}
		x, err := ParsePackIndex(tail, e, MinBlockBytes)
		classified(t, err)
		if err != nil {
			return
		}
		next, ordinal := int64(PackHeaderBytes), uint32(0)
		for fr := range x.Frames() {
			if fr.Offset != next || fr.FirstOrdinal != ordinal || fr.Blocks < 1 || fr.Blocks > MaxFrameBlocks {
				t.Fatalf("frame %+v does not follow the one before", fr)
			}
			for range fr.Blocks {
				if got, ok := x.Frame(ordinal); !ok || got != fr {
					t.Fatalf("ordinal %d is in %+v, want %+v", ordinal, got, fr)
				}
				ordinal++
			}
			next += fr.Length
		}
		if ordinal != x.DataBlocks() || next != int64(indexOffset) {
			t.Fatal("the frames do not fill the pack")
		}
	})
}

func FuzzParsePack(f *testing.F) {
	p, _ := fixedPack(f)
	f.Add(p.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _, err := ParsePack(b)
		classified(t, err)
		if len(b) < PackHeaderBytes+MinPackTailBytes {
			return
		}
		// Once more past the hash over everything.
		if footer, err := parsePackFooter(b[len(b)-PackFooterBytes:]); err == nil {
			_, _, _, err = parsePackParts(b, footer)
			classified(t, err)
		}
	})
}

func FuzzParseNode(f *testing.F) {
	f.Add(mustBytes(AppendNode(nil, fixedLeaf(f))))
	_, nodes := fixedMap(f)
	f.Add(mustBytes(AppendNode(nil, nodes[1].Node)))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ParseNode(b)
		classified(t, err)
		if err != nil {
			return
		}
		again, err := AppendNode(nil, n)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a node has two forms: %x and %x, %v", b, again, err)
		}
	})
}

func FuzzParseMap(f *testing.F) {
	m, _ := fixedMap(f)
	f.Add(m.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, nodes, err := ParseMap(b)
		classified(t, err)
		total := MapHeaderBytes
		for _, n := range nodes {
			if int(n.Ref.Offset) != total || n.Ref.Run != h.Run || n.Ref.Verify(b[total:total+int(n.Ref.Length)]) != nil {
				t.Fatalf("node %+v does not lie at %d", n.Ref, total)
			}
			total += int(n.Ref.Length)
		}
		if err == nil && total != len(b) {
			t.Fatal("the nodes do not fill the object")
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add(fixedManifestBytes(f))
	at := fixedIdentity(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < manifestTrailerBytes {
			return
		}
		b = resum(bytes.Clone(b))
		m, err := ParseManifest(b, Identity{Run: at.Run})
		classified(t, err)
		if err != nil {
			return
		}
		again, err := AppendManifest(nil, m)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a manifest has two forms: %x and %x, %v", b, again, err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	at := fixedIdentity(f)
	f.Add(RepositoryKey(1))
	f.Add(MachineKey(at.Machine))
	f.Add(IntentKey(at.Machine, at.Run, 3))
	f.Add(PackKey(at.Machine, at.Run, 3))
	f.Add(ManifestKey(at.Machine, at.Run))
	f.Add("data/../x")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		classified(t, err)
		if err == nil && k.String() != s {
			t.Fatalf("%q is read as %q", s, k)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	codec := fixedCodec(f, MinBlockBytes)
	one, _ := letterFrame(0, 0, "AB")
	f.Add(one.Compressed, 2)
	f.Add(codec.Compress(nil, textBlocks(MinBlockBytes)), 1)
	f.Fuzz(func(t *testing.T, frame []byte, blocks int) {
		if blocks < 1 || blocks > MaxFrameBlocks {
			return
		}
		out, err := codec.Decompress(nil, frame, blocks)
		classified(t, err)
		if err == nil && len(out) != blocks*MinBlockBytes {
			t.Fatalf("%d bytes for %d blocks", len(out), blocks)
		}
	})
}
