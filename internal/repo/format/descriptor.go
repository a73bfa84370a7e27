package format

import (
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// CodecZstd is the only codec of version 1: each frame is one zstd frame.
const CodecZstd = "zstd"

// Descriptor says what a repository is. It lies under RepositoryKey; the highest
// generation wins, and block size, hash key and id never change between them.
//
// Features: a program that does not know one of MustRead must not read the
// repository, of MustWrite must not write to it; Optional ones may be ignored.
type Descriptor struct {
	Repository RepositoryID `json:"repository"`
	Generation uint64       `json:"generation"` // counts from 1
	Created    time.Time    `json:"created"`
	MustRead   []string     `json:"must_read,omitempty"`
	MustWrite  []string     `json:"must_write,omitempty"`
	Optional   []string     `json:"optional,omitempty"`
	BlockBytes int64        `json:"block_bytes"`
	HashKey    HashKey      `json:"hash_key"`
	Codec      string       `json:"codec"`
	Tool       string       `json:"tool,omitempty"`
}

// CheckWrite refuses a repository that this program may read but not write to.
func (d *Descriptor) CheckWrite() error {
	if len(d.MustWrite) > 0 {
		return unsupported("repository", "writing to it needs the feature %.40q", d.MustWrite[0])
	}
	return nil
}

func (d *Descriptor) validate() error {
	switch {
	case d.Repository.IsZero():
		return corrupt("repository", -1, "the repository id is missing")
	case d.Generation < 1 || d.Generation > MaxGeneration:
		return corrupt("repository", -1, "generation %d is out of range", d.Generation)
	case CheckBlockBytes(d.BlockBytes) != nil:
		return corrupt("repository", -1, "block size %d is no power of two from 16 KiB to 1 MiB", d.BlockBytes)
	case d.HashKey == HashKey{}:
		return corrupt("repository", -1, "the hash key is missing")
	case d.Codec != CodecZstd:
		return unsupported("repository", "its codec is %.20q, this program knows zstd", d.Codec)
	}
	return nil
}

// AppendDescriptor appends the document.
func AppendDescriptor(dst []byte, d *Descriptor) ([]byte, error) {
	v := *d
	v.Created = d.Created.UTC()
	return appendDocument(dst, KindRepository, &v, func(b []byte) (*Descriptor, error) {
		return parseDescriptor(b, d.Generation)
	})
}

// ParseDescriptor reads the document that lies under RepositoryKey(generation).
func ParseDescriptor(b []byte, generation uint64) (*Descriptor, error) {
	return parseDescriptor(b, generation)
}

func parseDescriptor(b []byte, generation uint64) (*Descriptor, error) {
	d := &Descriptor{}
	if err := parseDocument(b, KindRepository, d); err != nil {
		return nil, err
	}
	if err := d.validate(); err != nil {
		return nil, err
	}
	if d.Generation != generation {
		return nil, misplaced("repository", "it is generation %d, read as %d", d.Generation, generation)
	}
	return d, nil
}

// Machine says what a machine is: evidence for whether a name may be taken over.
type Machine struct {
	Repository RepositoryID      `json:"repository"`
	Name       ident.MachineName `json:"machine"`
	ID         ident.MachineID   `json:"machine_id"`
	Created    time.Time         `json:"created"`
	FirstHost  string            `json:"first_host"`
	UUID       string            `json:"uuid,omitempty"` // libvirt's, "" when unknown
	Disks      []MachineDisk     `json:"disks,omitempty"`
	Tool       string            `json:"tool,omitempty"`
}

// MachineDisk is a disk of a machine as it was first seen.
type MachineDisk struct {
	Name      string `json:"name"`
	Path      string `json:"path"`
	Format    string `json:"format"`
	SizeBytes int64  `json:"size_bytes"`
}

func (m *Machine) validate() error {
	if m.Repository.IsZero() || m.Name == "" || m.ID.IsZero() {
		return corrupt("machine", -1, "repository, machine or machine id is missing")
	}
	for _, d := range m.Disks {
		if err := ident.CheckDiskName(d.Name); err != nil || d.SizeBytes < 0 {
			return corrupt("machine", -1, "disk %.40q has a bad name or size", d.Name)
		}
	}
	return nil
}

// AppendMachine appends the document.
func AppendMachine(dst []byte, m *Machine) ([]byte, error) {
	v := *m
	v.Created = m.Created.UTC()
	return appendDocument(dst, KindMachine, &v, func(b []byte) (*Machine, error) {
		return ParseMachine(b, m.Repository, m.Name)
	})
}

// ParseMachine reads the document that lies under MachineKey(name). A zero
// repository is not compared.
func ParseMachine(b []byte, repository RepositoryID, name ident.MachineName) (*Machine, error) {
	m := &Machine{}
	if err := parseDocument(b, KindMachine, m); err != nil {
		return nil, err
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	if m.Name != name {
		return nil, misplaced("machine", "it is of machine %q, read under %q", m.Name, name)
	}
	if !repository.IsZero() && m.Repository != repository {
		return nil, misplaced("machine", "it is of repository %s, read in %s", m.Repository, repository)
	}
	return m, nil
}
