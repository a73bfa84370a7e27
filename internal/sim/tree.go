package sim

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Tree is what a folder holds, by path below it.
type Tree map[string]Entry

// Entry is a folder or a file.
type Entry struct {
	Folder bool
	Bytes  []byte
}

// ReadTree reads a folder; one that is not there is empty.
func ReadTree(root string) (Tree, error) {
	tree := Tree{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if path == root {
			if errors.Is(err, fs.ErrNotExist) {
				return fs.SkipAll
			}
			return err
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		e := Entry{Folder: d.IsDir()}
		if !e.Folder {
			e.Bytes, err = os.ReadFile(path)
		}
		tree[name] = e
		return err
	})
	return tree, err
}

// Write fills a folder, which is made when it is not there. What it holds already
// stays.
func (t Tree) Write(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t)) { // folders before what is in them
		path := filepath.Join(root, name)
		var err error
		if e := t[name]; e.Folder {
			err = os.MkdirAll(path, 0o700)
		} else {
			err = os.WriteFile(path, e.Bytes, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Equal reports whether two trees hold the same.
func (t Tree) Equal(other Tree) bool {
	return maps.EqualFunc(t, other, func(a, b Entry) bool { return a.Folder == b.Folder && bytes.Equal(a.Bytes, b.Bytes) })
}
