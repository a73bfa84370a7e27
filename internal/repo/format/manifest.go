package format

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/qbackup/qbackup/internal/ident"
)

// Dependency is another run that the maps of a point refer to, and the hash of its
// manifest.
type Dependency struct {
	Run      ident.RunID
	Manifest Hash
}

// Manifest lists what counts of a run's data, and the other runs that its point
// depends on. Packs and map objects under the run's prefix that it does not name
// belong to nobody. All three lists ascend, by Seq or by Run.
type Manifest struct {
	Repository RepositoryID
	MachineID  ident.MachineID
	Run        ident.RunID
	Packs      []PackEntry
	Maps       []MapEntry
	Runs       []Dependency
}

// Layout, big-endian:
//
//	0    4  "QBMF"
//	4    2  format, 1
//	6    2  flags, 0
//	8   16  repository
//	24  16  machine id
//	40  16  run
//	56   4  number of packs
//	60   4  number of map objects
//	64   4  number of other runs
//	68   4  reserved, 0
//	72  48  each pack: seq 4, bytes 4, index offset 4, data blocks 4, index hash 32
//	..  40  each map object: seq 4, bytes 4, hash 32
//	..  48  each run: id 16, manifest hash 32
//	..  32  BLAKE3-256 of everything before
//
// A record's Reference holds the hash of the whole object, trailer included.

// AppendManifest appends the bytes of a manifest.
func AppendManifest(dst []byte, m *Manifest) ([]byte, error) {
	if n := m.size(); n > MaxObjectBytes {
		return nil, invalid("manifest", "its %d bytes exceed the %d of an object", n, MaxObjectBytes)
	}
	start := len(dst)
	dst = slices.Grow(dst, int(m.size()))
	dst = append(dst, manifestMagic...)
	dst = binary.BigEndian.AppendUint16(dst, Version)
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = append(dst, m.Repository[:]...)
	dst = append(dst, m.MachineID[:]...)
	dst = append(dst, m.Run[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(m.Packs)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(m.Maps)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(m.Runs)))
	dst = binary.BigEndian.AppendUint32(dst, 0)
	for i := range m.Packs {
		p := &m.Packs[i]
		dst = binary.BigEndian.AppendUint32(dst, p.Seq)
		dst = binary.BigEndian.AppendUint32(dst, uint32(p.Bytes))
		dst = binary.BigEndian.AppendUint32(dst, p.IndexOffset)
		dst = binary.BigEndian.AppendUint32(dst, p.DataBlocks)
		dst = append(dst, p.IndexHash[:]...)
	}
	for i := range m.Maps {
		dst = binary.BigEndian.AppendUint32(dst, m.Maps[i].Seq)
		dst = binary.BigEndian.AppendUint32(dst, uint32(m.Maps[i].Bytes))
		dst = append(dst, m.Maps[i].Hash[:]...)
	}
	for i := range m.Runs {
		dst = append(dst, m.Runs[i].Run[:]...)
		dst = append(dst, m.Runs[i].Manifest[:]...)
	}
	sum := SumHash(dst[start:])
	dst = append(dst, sum[:]...)
	back, err := ParseManifest(dst[start:], Identity{Repository: m.Repository, MachineID: m.MachineID, Run: m.Run})
	if err != nil {
		return nil, invalid("manifest", "what was written cannot be read back: %v", err)
	}
	if !back.equal(m) {
		return nil, invalid("manifest", "what was read back differs from what was written")
	}
	return dst, nil
}

func (m *Manifest) size() int64 {
	return minManifestTotalBytes + int64(len(m.Packs))*manifestPackBytes +
		int64(len(m.Maps))*manifestMapBytes + int64(len(m.Runs))*manifestRunBytes
}

func (m *Manifest) equal(o *Manifest) bool {
	return m.Repository == o.Repository && m.MachineID == o.MachineID && m.Run == o.Run &&
		slices.Equal(m.Packs, o.Packs) && slices.Equal(m.Maps, o.Maps) && slices.Equal(m.Runs, o.Runs)
}

// ParseManifest reads a whole manifest that lies under ManifestKey of this
// identity. A zero repository or machine id in at is not compared; the machine's
// name is not in a manifest.
func ParseManifest(b []byte, at Identity) (*Manifest, error) {
	const what = "manifest"
	if len(b) < minManifestTotalBytes || len(b) > MaxObjectBytes {
		return nil, corrupt(what, -1, "%d bytes are not the length of a manifest", len(b))
	}
	end := len(b) - manifestTrailerBytes
	if SumHash(b[:end]) != Hash(b[end:]) {
		return nil, corrupt(what, end, "the hash at the end does not match the bytes before it")
	}
	if err := checkPreamble(what, b, manifestMagic); err != nil {
		return nil, err
	}
	packs, maps, runs := binary.BigEndian.Uint32(b[56:]), binary.BigEndian.Uint32(b[60:]), binary.BigEndian.Uint32(b[64:])
	want := minManifestTotalBytes + int64(packs)*manifestPackBytes + int64(maps)*manifestMapBytes + int64(runs)*manifestRunBytes
	if want != int64(len(b)) {
		return nil, corrupt(what, 56, "%d packs, %d maps and %d runs take %d bytes where %d are", packs, maps, runs, want, len(b))
	}
	if binary.BigEndian.Uint32(b[68:]) != 0 {
		return nil, corrupt(what, 68, "reserved bytes are not zero")
	}
	m := &Manifest{Repository: RepositoryID(b[8:24]), MachineID: ident.MachineID(b[24:40]), Run: ident.RunID(b[40:56])}
	if m.Repository.IsZero() || m.MachineID.IsZero() || m.Run.IsZero() {
		return nil, corrupt(what, 8, "repository, machine id or run is missing")
	}
	if err := checkName(what, at, 0, m.Repository, m.MachineID, m.Run, 0); err != nil {
		return nil, err
	}
	if err := m.parseObjects(b[manifestHeaderBytes:end], int(packs), int(maps)); err != nil {
		return nil, err
	}
	if err := m.parseRuns(b[end-int(runs)*manifestRunBytes:end], int(runs)); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) parseObjects(b []byte, packs, maps int) error {
	at := manifestHeaderBytes
	m.Packs = make([]PackEntry, packs)
	for i := range m.Packs {
		p := &m.Packs[i]
		*p = PackEntry{
			Seq:         binary.BigEndian.Uint32(b),
			Bytes:       int64(binary.BigEndian.Uint32(b[4:])),
			IndexOffset: binary.BigEndian.Uint32(b[8:]),
			DataBlocks:  binary.BigEndian.Uint32(b[12:]),
			IndexHash:   Hash(b[16:48]),
		}
		if err := p.validate(); err != nil {
			return fmt.Errorf("check pack %d of the manifest, at byte %d: %w", i, at, err)
		}
		if i > 0 && m.Packs[i-1].Seq >= p.Seq {
			return corrupt("manifest", at, "the packs do not ascend")
		}
		b, at = b[manifestPackBytes:], at+manifestPackBytes
	}
	m.Maps = make([]MapEntry, maps)
	for i := range m.Maps {
		e := &m.Maps[i]
		*e = MapEntry{Seq: binary.BigEndian.Uint32(b), Bytes: int64(binary.BigEndian.Uint32(b[4:])), Hash: Hash(b[8:40])}
		if err := e.validate(); err != nil {
			return fmt.Errorf("check map object %d of the manifest, at byte %d: %w", i, at, err)
		}
		if i > 0 && m.Maps[i-1].Seq >= e.Seq {
			return corrupt("manifest", at, "the map objects do not ascend")
		}
		b, at = b[manifestMapBytes:], at+manifestMapBytes
	}
	return nil
}

func (m *Manifest) parseRuns(b []byte, runs int) error {
	if runs > MaxDependencies {
		return corrupt("manifest", 64, "%d runs exceed the limit of %d", runs, MaxDependencies)
	}
	m.Runs = make([]Dependency, runs)
	for i := range m.Runs {
		d := &m.Runs[i]
		*d = Dependency{Run: ident.RunID(b), Manifest: Hash(b[16:48])}
		if d.Run.IsZero() || d.Run == m.Run || d.Manifest.IsZero() || i > 0 && m.Runs[i-1].Run.Compare(d.Run) >= 0 {
			return corrupt("manifest", -1, "run %d is missing, the run itself, or out of order", i)
		}
		b = b[manifestRunBytes:]
	}
	return nil
}

// Pack gives the entry of a pack by its number.
func (m *Manifest) Pack(seq uint32) (PackEntry, bool) {
	i := sort.Search(len(m.Packs), func(i int) bool { return m.Packs[i].Seq >= seq })
	if i == len(m.Packs) || m.Packs[i].Seq != seq {
		return PackEntry{}, false
	}
	return m.Packs[i], true
}

// Map gives the entry of a map object by its number.
func (m *Manifest) Map(seq uint32) (MapEntry, bool) {
	i := sort.Search(len(m.Maps), func(i int) bool { return m.Maps[i].Seq >= seq })
	if i == len(m.Maps) || m.Maps[i].Seq != seq {
		return MapEntry{}, false
	}
	return m.Maps[i], true
}

// Dependency gives the entry of another run.
func (m *Manifest) Dependency(run ident.RunID) (Dependency, bool) {
	i := sort.Search(len(m.Runs), func(i int) bool { return m.Runs[i].Run.Compare(run) >= 0 })
	if i == len(m.Runs) || m.Runs[i].Run != run {
		return Dependency{}, false
	}
	return m.Runs[i], true
}
