package offline

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
)

// Image names one disk of a machine.
type Image struct {
	// Name is the disk's name in the machine, unique there.
	Name string
	// Path is where the image is; symbolic links are followed.
	Path string
	// Raw says that the file is a raw disk. Formats are never guessed.
	Raw bool
}

// Options are the choices for a machine. The zero value has no family, follows no
// backing files and lets machines start.
type Options struct {
	// Family is the machine's family of bitmaps.
	Family ident.FamilyID
	// AllowDirs are the folders in which images may name backing and data
	// files, themselves or anything below. Symbolic links in them are
	// followed.
	AllowDirs []string
	// Hold keeps other programs from writing to the images from Freeze until
	// the end of the cut, so that a machine that is started meanwhile fails.
	Hold bool
	// CacheBytes bounds the memory for L2 tables of each disk; 16 MiB when
	// zero.
	CacheBytes int64
	// OpenFile opens a top image with flags O_RDWR or O_RDONLY at a path
	// without symbolic links; by default from the file system. The File does
	// its work through the descriptor of the *os.File, which has the locks. A
	// test puts in what it wants to see or to break.
	OpenFile func(path string, flags int) (*os.File, qcow2.File, error)
}

// Machine is a machine that is switched off. It keeps nothing open between calls.
type Machine struct {
	images  []Image
	options Options
	// seen is what the last Inspect found, by the disk's name.
	seen map[string]print
}

var _ source.Machine = (*Machine)(nil)

// ErrSameFile is reported when two disks of a machine are the same file, or one is
// a part of another.
var ErrSameFile = errors.New("two disks share a file")

// New makes a machine of images. Nothing is opened yet.
func New(images []Image, o Options) *Machine {
	if o.OpenFile == nil {
		o.OpenFile = openOSFile
	}
	return &Machine{images: images, options: o}
}

// Inspect opens the images one after the other, looks at them, and closes them.
// An image that somebody writes to is a disk whose Err is a *source.HeldError.
func (m *Machine) Inspect(ctx context.Context) (source.Evidence, error) {
	m.seen = map[string]print{}
	var found source.Evidence
	var users fileUsers
	for _, spec := range m.images {
		e, err := m.inspect(ctx, spec, &users)
		if stop := ctx.Err(); stop != nil {
			return source.Evidence{}, fmt.Errorf("inspect disk %s: %w", spec.Name, stop)
		}
		if errors.Is(err, ErrSameFile) {
			return source.Evidence{}, err
		}
		if err != nil {
			e = source.DiskEvidence{Name: spec.Name, Path: spec.Path, Err: err}
		}
		found.Disks = append(found.Disks, e)
	}
	return found, nil
}

func (m *Machine) inspect(ctx context.Context, spec Image, users *fileUsers) (e source.DiskEvidence, err error) {
	img, err := openImage(ctx, spec, m.options.Family, m.options)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	if err := users.add(img); err != nil {
		return e, err
	}
	p, err := img.takePrint()
	if err != nil {
		return e, asUnusable(spec.Path, err)
	}
	if e, err = img.evidence(ctx, m.options.Family, p); err != nil {
		return e, asUnusable(spec.Path, err)
	}
	// What was read counts only if nobody wrote meanwhile.
	if err := img.testWriters(); err != nil {
		return e, err
	}
	again, err := img.takePrint()
	if err != nil {
		return e, asUnusable(spec.Path, err)
	}
	if what := p.difference(again); what != "" {
		return e, changed(spec, what)
	}
	m.seen[spec.Name] = p
	return e, nil
}

// testWriters makes sure that nobody has begun to write to any file of the disk.
func (m *image) testWriters() error {
	for _, f := range m.files {
		if err := f.locks.test(deniesRead, usesWrite, usesResize); err != nil {
			return f.lockError(err)
		}
	}
	return nil
}

func changed(spec Image, what string) error {
	return &source.UsableError{Path: spec.Path, Err: fmt.Errorf("%w: %s", source.ErrChanged, what),
		Hint: "somebody has used it meanwhile; run the backup again"}
}

// Freeze opens and locks the images that bases names and makes sure that they are
// what Inspect found. No copy is made: the point in time lasts as long as nobody
// writes, which is watched from here on.
func (m *Machine) Freeze(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	if run.IsZero() {
		return nil, errors.New("freeze: a run without id")
	}
	c := &cut{run: run, hold: m.options.Hold}
	var users fileUsers
	for _, base := range bases {
		if err := m.freeze(ctx, c, base, &users); err != nil {
			return nil, errors.Join(fmt.Errorf("freeze disk %s: %w", base.Disk, err), c.close())
		}
	}
	if !c.hold {
		c.watch = startWatch(c.images())
		for _, d := range c.disks {
			d.watch = c.watch
		}
	}
	return c, nil
}

// freeze adds one disk to the cut.
func (m *Machine) freeze(ctx context.Context, c *cut, base source.Base, users *fileUsers) error {
	spec, err := m.image(base.Disk)
	if err != nil {
		return err
	}
	was, ok := m.seen[base.Disk]
	if !ok {
		return errors.New("the disk was not inspected, or cannot be used")
	}
	img, err := openImage(ctx, spec, base.Family, m.options)
	if err != nil {
		return err
	}
	d := &frozenDisk{image: img, run: c.run, base: base}
	c.disks = append(c.disks, d)
	if err := users.add(img); err != nil {
		return err
	}
	if d.print, err = img.takePrint(); err != nil {
		return asUnusable(spec.Path, err)
	}
	if what := was.difference(d.print); what != "" {
		return changed(spec, what)
	}
	return d.prepare(ctx)
}

func (m *Machine) image(name string) (Image, error) {
	for _, spec := range m.images {
		if spec.Name == name {
			return spec, nil
		}
	}
	return Image{}, errors.New("the machine has no such disk")
}

// fileUsers knows which files which disks are made of. Backing files may be
// shared, because nobody writes to them; anything else would be two disks in one.
type fileUsers []fileUser

type fileUser struct {
	disk, path string
	role       string
	id         identity
}

func (u *fileUsers) add(m *image) error {
	for _, f := range m.files {
		for _, other := range *u {
			if other.id != f.id || other.role == facts.RoleBacking && f.role == facts.RoleBacking {
				continue
			}
			return &source.UsableError{Path: m.spec.Path,
				Err:  fmt.Errorf("%w: %s of disk %s is %s of disk %s", ErrSameFile, f.path, m.spec.Name, other.path, other.disk),
				Hint: "name each image once, and no image together with one that is based on it"}
		}
	}
	for _, f := range m.files {
		*u = append(*u, fileUser{disk: m.spec.Name, path: f.path, role: f.role, id: f.id})
	}
	return nil
}
