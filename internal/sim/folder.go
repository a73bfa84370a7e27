package sim

import (
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"github.com/qbackup/qbackup/internal/store/dir"
)

// FolderFS passes what a store does to a folder on to another dir.FS, and records
// it.
type FolderFS struct {
	fs   dir.FS
	log  *Log
	name string
	root string
}

// Folder adds a folder, of which all that it holds now is durable.
func (l *Log) Folder(name, root string, below dir.FS) (*FolderFS, error) {
	tree, err := ReadTree(root)
	if err != nil {
		return nil, err
	}
	l.add(&device{name: name, kind: folderDevice, tree: tree})
	return &FolderFS{below, l, name, root}, nil
}

func (f *FolderFS) effect(verb Verb, path string) Effect {
	return Effect{Device: f.name, Verb: verb, Path: f.rel(path)}
}

// rel makes a path relative to the folder. A store has no others.
func (f *FolderFS) rel(path string) string {
	rel, err := filepath.Rel(f.root, path)
	if err != nil {
		panic(err)
	}
	return rel
}

// Mkdir implements dir.FS.
func (f *FolderFS) Mkdir(path string, mode fs.FileMode) error {
	return f.log.do(f.effect(Mkdir, path), func() error { return f.fs.Mkdir(path, mode) })
}

// Create implements dir.FS.
func (f *FolderFS) Create(path string, mode fs.FileMode) (dir.File, error) {
	var file dir.File
	err := f.log.do(f.effect(Create, path), func() (err error) {
		file, err = f.fs.Create(path, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &folderFile{file, f, path}, nil
}

// Link implements dir.FS.
func (f *FolderFS) Link(temp, final string) error {
	e := f.effect(Link, temp)
	e.To = f.rel(final)
	return f.log.do(e, func() error { return f.fs.Link(temp, final) })
}

// Remove implements dir.FS.
func (f *FolderFS) Remove(path string) error {
	return f.log.do(f.effect(Remove, path), func() error { return f.fs.Remove(path) })
}

// SyncDir implements dir.FS.
func (f *FolderFS) SyncDir(path string) error {
	return f.log.do(f.effect(SyncDir, path), func() error { return f.fs.SyncDir(path) })
}

type folderFile struct {
	file dir.File
	f    *FolderFS
	path string
}

func (f *folderFile) Write(p []byte) (n int, err error) {
	e := f.f.effect(Write, f.path)
	e.Data = slices.Clone(p)
	err = f.f.log.do(e, func() error {
		n, err = f.file.Write(p)
		return err
	})
	return n, err
}

func (f *folderFile) Sync() error { return f.f.log.do(f.f.effect(Sync, f.path), f.file.Sync) }

// Close closes the file also when it is to fail.
func (f *folderFile) Close() error {
	closed := false
	err := f.f.log.do(f.f.effect(Close, f.path), func() error {
		closed = true
		return f.file.Close()
	})
	if !closed {
		_ = f.file.Close()
	}
	return err
}

// NoSync is the operating system's file system in a hurry, for tests whose subject
// is not what is durable.
type NoSync struct{ dir.OS }

// SyncDir implements dir.FS.
func (NoSync) SyncDir(string) error { return nil }

// Create implements dir.FS.
func (f NoSync) Create(path string, mode fs.FileMode) (dir.File, error) {
	file, err := f.OS.Create(path, mode)
	return noSyncFile{file}, err
}

type noSyncFile struct{ dir.File }

func (noSyncFile) Sync() error { return nil }

// inode is a file or folder, which may have several names.
type inode struct {
	folder        bool
	bytes, synced []byte
}

// folderModel is a folder with what is durable of it: names that are not synced may
// be there or not, and so may bytes that are not.
type folderModel struct{ now, durable map[string]*inode }

func replayFolder(base Tree, effects []Effect) folderModel {
	m := folderModel{map[string]*inode{}, map[string]*inode{}}
	for name, e := range base {
		m.now[name] = &inode{e.Folder, e.Bytes, e.Bytes}
		m.durable[name] = m.now[name]
	}
	for _, e := range effects {
		switch e.Verb {
		case Mkdir:
			m.now[e.Path] = &inode{folder: true}
		case Create:
			m.now[e.Path] = &inode{}
		case Write:
			m.now[e.Path].bytes = append(slices.Clone(m.now[e.Path].bytes), e.Data...)
		case Sync:
			m.now[e.Path].synced = m.now[e.Path].bytes
		case Link:
			m.now[e.To] = m.now[e.Path]
		case Remove:
			delete(m.now, e.Path)
		case SyncDir:
			m.syncNames(e.Path)
		}
	}
	return m
}

func (m folderModel) syncNames(folder string) {
	maps.DeleteFunc(m.durable, func(name string, _ *inode) bool { return filepath.Dir(name) == folder && m.now[name] == nil })
	for name, n := range m.now {
		if filepath.Dir(name) == folder {
			m.durable[name] = n
		}
	}
}

// survive returns what may be left after a power failure. chance 0 keeps only what
// is durable, 1 keeps all, and in between names and bytes are there by chance.
func (m folderModel) survive(chance float64, random *rand.Rand) Tree {
	kept := map[string]*inode{}
	for _, name := range slices.Sorted(maps.Keys(m.durable)) {
		if m.now[name] != nil || random.Float64() >= chance { // a removal that may be lost
			kept[name] = m.durable[name]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.now)) {
		if random.Float64() < chance {
			kept[name] = m.now[name]
		}
	}
	tree, content := Tree{}, map[*inode][]byte{}
	for _, name := range slices.Sorted(maps.Keys(kept)) { // folders before what is in them
		if above := filepath.Dir(name); above != "." && !tree[above].Folder {
			continue // its folder was lost
		}
		n := kept[name]
		if _, known := content[n]; !known {
			content[n] = n.survive(chance, random)
		}
		tree[name] = Entry{n.folder, content[n]}
	}
	return tree
}

// survive returns the bytes of a file: the synced ones, some of the rest, and
// sometimes zeros up to its length, as of a file whose size reached the disk first.
func (n *inode) survive(chance float64, random *rand.Rand) []byte {
	rest := len(n.bytes) - len(n.synced)
	switch {
	case rest == 0 || chance <= 0:
		return n.synced
	case chance >= 1:
		return n.bytes
	}
	b := slices.Clone(n.bytes[:len(n.synced)+random.IntN(rest+1)])
	if random.IntN(2) == 0 {
		b = append(b, make([]byte, len(n.bytes)-len(b))...)
	}
	return b
}
