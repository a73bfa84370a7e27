package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
)

// resum gives the manifest a sound hash again.
func resum(b []byte) []byte {
	end := len(b) - manifestTrailerBytes
	sum := SumHash(b[:end])
	copy(b[end:], sum[:])
	return b
}

func TestManifestFindsItsEntries(t *testing.T) {
	m := fixedManifest(t)
	m.Packs = append(m.Packs, m.Packs[0])
	m.Packs[1].Seq = 10
	m, err := ParseManifest(mustBytes(AppendManifest(nil, m)), fixedIdentity(t))
	if err != nil {
		t.Fatal(err)
	}
	for seq, want := range map[uint32]bool{2: false, 3: true, 4: false, 10: true, 11: false} {
		if e, ok := m.Pack(seq); ok != want || ok && e.Seq != seq {
			t.Errorf("pack %d: %+v, %v", seq, e, ok)
		}
	}
	for seq, want := range map[uint32]bool{0: false, 1: true, 2: false} {
		if e, ok := m.Map(seq); ok != want || ok && e.Seq != seq {
			t.Errorf("map %d: %+v, %v", seq, e, ok)
		}
	}
	for n, want := range map[byte]bool{0: false, 1: true, 2: false, 3: false} {
		if d, ok := m.Dependency(fixedRun(t, n)); ok != want || ok && d.Run != fixedRun(t, n) {
			t.Errorf("run %d: %+v, %v", n, d, ok)
		}
	}
}

func TestManifestOfNothingComesBack(t *testing.T) {
	at := fixedIdentity(t)
	m := &Manifest{Repository: at.Repository, MachineID: at.MachineID, Run: at.Run}
	b := mustBytes(AppendManifest([]byte("before"), m))[len("before"):]
	if got, err := ParseManifest(b, at); err != nil || !got.equal(m) || len(b) != minManifestTotalBytes {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestManifestsThatBreakARuleAreNotWritten(t *testing.T) {
	for name, change := range map[string]func(m *Manifest){
		"repository":    func(m *Manifest) { m.Repository = RepositoryID{} },
		"machine":       func(m *Manifest) { m.MachineID = ident.MachineID{} },
		"run":           func(m *Manifest) { m.Run = ident.RunID{} },
		"packs twice":   func(m *Manifest) { m.Packs = append(m.Packs, m.Packs[0]) },
		"maps twice":    func(m *Manifest) { m.Maps = append(m.Maps, m.Maps[0]) },
		"runs twice":    func(m *Manifest) { m.Runs = append(m.Runs, m.Runs[0]) },
		"own run":       func(m *Manifest) { m.Runs[0].Run = m.Run },
		"no hash":       func(m *Manifest) { m.Runs[0].Manifest = Hash{} },
		"large pack":    func(m *Manifest) { m.Packs[0].Bytes = MaxObjectBytes + 1 },
		"huge pack":     func(m *Manifest) { m.Packs[0].Bytes += 1 << 32 },
		"negative pack": func(m *Manifest) { m.Packs[0].Bytes = -1 },
		"no tail":       func(m *Manifest) { m.Packs[0].IndexOffset = uint32(m.Packs[0].Bytes) },
		"large map":     func(m *Manifest) { m.Maps[0].Bytes = MaxObjectBytes + 1 },
		"small map":     func(m *Manifest) { m.Maps[0].Bytes = MapHeaderBytes - 1 },
		"map seq":       func(m *Manifest) { m.Maps[0].Seq = MaxSeq + 1 },
		"too many":      func(m *Manifest) { m.Packs = make([]PackEntry, MaxObjectBytes/manifestPackBytes) },
		"too many runs": func(m *Manifest) {
			m.Runs = nil
			for i := range MaxDependencies + 1 {
				var run ident.RunID
				binary.BigEndian.PutUint32(run[:], uint32(i+1))
				m.Runs = append(m.Runs, Dependency{Run: run, Manifest: Hash{1}})
			}
		},
	} {
		m := fixedManifest(t)
		change(m)
		if b, err := AppendManifest(nil, m); !errors.Is(err, ErrInvalid) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestsThatBreakARuleAreNotRead(t *testing.T) {
	good, at := fixedManifestBytes(t), fixedIdentity(t)
	if _, err := ParseManifest(resum(bytes.Clone(good)), at); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"magic":      {func(b []byte) { b[0] = 'X' }, ErrCorrupt},
		"format":     {func(b []byte) { b[5] = 2 }, ErrUnsupported},
		"flags":      {func(b []byte) { b[7] = 1 }, ErrUnsupported},
		"run":        {func(b []byte) { b[55] ^= 1 }, ErrMisplaced},
		"repository": {func(b []byte) { b[8] ^= 1 }, ErrMisplaced},
		"machine":    {func(b []byte) { b[24] ^= 1 }, ErrMisplaced},
		"packs":      {func(b []byte) { b[56] = 0xff }, ErrCorrupt},
		"maps":       {func(b []byte) { b[60] = 0xff }, ErrCorrupt},
		"runs":       {func(b []byte) { b[67]++ }, ErrCorrupt},
		"reserved":   {func(b []byte) { b[71] = 1 }, ErrCorrupt},
	} {
		b := bytes.Clone(good)
		c.change(b)
		if _, err := ParseManifest(resum(b), at); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
