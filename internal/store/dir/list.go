package dir

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qbackup/qbackup/internal/store"
)

// List implements store.Store. It reads one folder at a time; objects that come
// or go meanwhile are seen or not. Names that are no key are left out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := store.CheckPrefix(prefix); err != nil {
			yield(store.Info{}, err)
			return
		}
		// Only the folders that the prefix leads into can hold a match.
		folder, _ := path.Split(prefix)
		w := walk{root: s.root, prefix: prefix, yield: yield, ended: ctx.Err}
		w.stat = func(key string) (store.Info, error) { return s.Stat(ctx, key) }
		if !w.folder(folder) {
			return
		}
		// Checked last, so that the folder was there all the time.
		if err := s.gone(); err != nil {
			yield(store.Info{}, store.Fail("list", prefix, store.ErrNoStore, err, "is it mounted?"))
		}
	}
}

type walk struct {
	root   string
	prefix string
	stat   func(key string) (store.Info, error)
	ended  func() error // the error of the context
	yield  func(store.Info, error) bool
}

// folder yields what is below the folder with the given key, which is empty or
// ends with a slash. It reports whether to go on.
func (w *walk) folder(folder string) bool {
	if err := w.ended(); err != nil {
		w.yield(store.Info{}, store.Fail("list", w.prefix, nil, err, ""))
		return false
	}
	entries, err := os.ReadDir(filepath.Join(w.root, filepath.FromSlash(folder)))
	if errors.Is(err, fs.ErrNotExist) || isFile(err) {
		return true // nothing there
	}
	if err != nil {
		w.yield(store.Info{}, classify("list", w.prefix, err))
		return false
	}
	for _, name := range keyOrder(entries) {
		key := folder + name
		if !strings.HasPrefix(key, w.prefix) && !strings.HasPrefix(w.prefix, key) {
			continue
		}
		if strings.HasSuffix(name, "/") {
			if !w.folder(key) {
				return false
			}
		} else if !w.object(key) {
			return false
		}
	}
	return true
}

func (w *walk) object(key string) bool {
	if !strings.HasPrefix(key, w.prefix) {
		return true
	}
	info, err := w.stat(key)
	if errors.Is(err, store.ErrNotFound) {
		return true // deleted since
	}
	if err != nil {
		w.yield(store.Info{}, store.Fail("list", w.prefix, nil, err, ""))
		return false
	}
	return w.yield(info, nil)
}

// keyOrder returns the names that can be part of a key, folders with a slash at
// the end, in the order of the keys' bytes: "a-b" comes before what is in "a/".
func keyOrder(entries []fs.DirEntry) []string {
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !store.ValidKey(e.Name()) {
			continue
		}
		switch {
		case e.IsDir():
			names = append(names, e.Name()+"/")
		case e.Type().IsRegular():
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}
