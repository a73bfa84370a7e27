package dir_test

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/store/dir"
)

// effect is one call through the FS seam, with paths relative to the root.
type effect struct {
	verb string // mkdir, create, write, sync, close, link, remove, syncdir
	path string
	to   string // link
	data []byte // write
}

// recorder passes effects on to the operating system and keeps them.
type recorder struct {
	dir.OS
	root    string
	effects []effect
	fail    func(effect) error // before the effect; nil: never
}

func (r *recorder) rel(path string) string {
	rel, err := filepath.Rel(r.root, path)
	if err != nil {
		panic(err)
	}
	return rel
}

func (r *recorder) note(e effect) error {
	if r.fail != nil {
		if err := r.fail(e); err != nil {
			return err
		}
	}
	r.effects = append(r.effects, e)
	return nil
}

func (r *recorder) Mkdir(path string, mode fs.FileMode) error {
	if _, err := os.Stat(path); err == nil {
		return r.OS.Mkdir(path, mode) // no effect
	}
	if err := r.note(effect{verb: "mkdir", path: r.rel(path)}); err != nil {
		return err
	}
	return r.OS.Mkdir(path, mode)
}

func (r *recorder) Create(path string, mode fs.FileMode) (dir.File, error) {
	if err := r.note(effect{verb: "create", path: r.rel(path)}); err != nil {
		return nil, err
	}
	f, err := r.OS.Create(path, mode)
	return &recordedFile{f, r, r.rel(path)}, err
}

func (r *recorder) Link(temp, final string) error {
	if err := r.note(effect{verb: "link", path: r.rel(temp), to: r.rel(final)}); err != nil {
		return err
	}
	err := r.OS.Link(temp, final)
	if err != nil {
		r.effects = r.effects[:len(r.effects)-1]
	}
	return err
}

func (r *recorder) Remove(path string) error {
	if err := r.note(effect{verb: "remove", path: r.rel(path)}); err != nil {
		return err
	}
	return r.OS.Remove(path)
}

func (r *recorder) SyncDir(path string) error {
	if err := r.note(effect{verb: "syncdir", path: r.rel(path)}); err != nil {
		return err
	}
	return r.OS.SyncDir(path)
}

type recordedFile struct {
	dir.File
	r    *recorder
	path string
}

func (f *recordedFile) Write(p []byte) (int, error) {
	if err := f.r.note(effect{verb: "write", path: f.path, data: slices.Clone(p)}); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *recordedFile) Sync() error {
	if err := f.r.note(effect{verb: "sync", path: f.path}); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *recordedFile) Close() error {
	err := f.r.note(effect{verb: "close", path: f.path})
	if cerr := f.File.Close(); err == nil {
		err = cerr
	}
	return err
}

// disk is a model of what a power failure leaves: names and bytes that were not
// synced may each be there or not.
type disk struct {
	now, durable map[string]*node // path to node, folders included
}

type node struct {
	folder        bool
	bytes, synced []byte
}

// replay applies effects to an empty disk.
func replay(effects []effect) *disk {
	d := &disk{now: map[string]*node{}, durable: map[string]*node{}}
	for _, e := range effects {
		switch e.verb {
		case "mkdir":
			d.now[e.path] = &node{folder: true}
		case "create":
			d.now[e.path] = &node{}
		case "write":
			d.now[e.path].bytes = append(d.now[e.path].bytes, e.data...)
		case "sync":
			d.now[e.path].synced = slices.Clone(d.now[e.path].bytes)
		case "link":
			d.now[e.to] = d.now[e.path]
		case "remove":
			delete(d.now, e.path)
		case "syncdir":
			for path := range d.durable {
				if filepath.Dir(path) == e.path && d.now[path] == nil {
					delete(d.durable, path)
				}
			}
			for path, n := range d.now {
				if filepath.Dir(path) == e.path {
					d.durable[path] = n
				}
			}
		}
	}
	return d
}

// survive writes to root what may be left after a power failure: names by chance
// when they are not durable, files with their synced bytes and any part of the
// rest. chance 0 keeps only what is durable, 1 keeps all.
func (d *disk) survive(t *testing.T, root string, chance float64, rng *rand.Rand) {
	t.Helper()
	kept := map[string]*node{}
	for path, n := range d.durable {
		if d.now[path] != nil || rng.Float64() >= chance { // a removal that may be lost
			kept[path] = n
		}
	}
	for path, n := range d.now {
		if rng.Float64() < chance {
			kept[path] = n
		}
	}
	paths := make([]string, 0, len(kept))
	for path := range kept {
		paths = append(paths, path)
	}
	slices.Sort(paths) // folders before what is in them
	for _, path := range paths {
		n := kept[path]
		at := filepath.Join(root, path)
		if _, err := os.Stat(filepath.Dir(at)); err != nil {
			continue // its folder was lost
		}
		var err error
		if n.folder {
			err = os.Mkdir(at, 0o700)
		} else {
			b := slices.Clone(n.synced)
			if rest := len(n.bytes) - len(b); rest > 0 && chance > 0 {
				b = append(b, n.bytes[len(b):len(b)+rng.IntN(rest+1)]...)
			}
			err = os.WriteFile(at, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
