package dir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Delete implements store.Store. The folders are synced at the end, so that
// what it removed stays removed.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	folders := map[string]bool{}
	for _, key := range keys {
		if err := begin(ctx, "delete", key); err != nil {
			return err
		}
		err := s.fs.Remove(s.path(key))
		if errors.Is(err, fs.ErrNotExist) || isFile(err) || errors.Is(err, unix.EISDIR) {
			continue // no such object
		}
		if err != nil {
			return classify("delete", key, err)
		}
		folders[filepath.Dir(s.path(key))] = true
	}
	for folder := range folders {
		if _, err := s.sweepFolder(folder); err != nil {
			return classify("delete", "", err)
		}
		if err := s.fs.SyncDir(folder); err != nil {
			return classify("delete", "", err)
		}
	}
	return nil
}

// Sweep removes, in all folders, temporary files older than a day, which only a
// writer that died leaves, and returns how many. It needs the right to delete,
// so it is for the one who prunes.
func (s *Store) Sweep(ctx context.Context) (removed int, err error) {
	err = filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := s.sweepFolder(path)
		removed += n
		return err
	})
	return removed, classify("sweep", "", err)
}

func (s *Store) sweepFolder(folder string) (removed int, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || s.now().Sub(info.ModTime()) < staleAge {
			continue
		}
		if err := s.fs.Remove(filepath.Join(folder, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// isFile reports that a path leads through a file as if it were a folder.
func isFile(err error) bool { return errors.Is(err, unix.ENOTDIR) }
