package repo

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// DefaultIndexCacheBytes bounds a cache of pack indexes unless told otherwise.
const DefaultIndexCacheBytes = 2 << 30

const (
	manifestFile = "manifest"
	// trimShare: a cache is trimmed after so much of its limit was added, down to
	// as much below it. So the folder is walked rarely.
	trimShare = 8
	// touchAfter is how old a file's time gets before using it makes it new.
	touchAfter = time.Hour
)

func packFile(seq uint32) string { return fmt.Sprintf("p%08d", seq) }

// IndexCache keeps pack indexes and manifests in a local folder. What it holds is
// believed only after it was checked against a hash from the repository; losing it
// costs requests. A file that cannot be written is not kept, and no error. A nil
// cache keeps nothing.
type IndexCache struct {
	dir      string
	maxBytes int64

	mu    sync.Mutex
	added int64 // bytes since the last trim
}

// OpenIndexCache uses a folder, made when missing (0700), for at most so many bytes
// and an eighth; the files that were used longest ago go first.
func OpenIndexCache(dir string, maxBytes int64) (*IndexCache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open cache of pack indexes: %w", err)
	}
	c := &IndexCache{dir: dir, maxBytes: maxBytes}
	// What earlier processes left may be too much already: the first addition looks.
	c.added = maxBytes / trimShare
	return c, nil
}

// localName is the file of an object below the cache's folder. All parts are of
// types that cannot hold a path.
func (r *Repository) localName(machine ident.MachineName, run ident.RunID, file string) string {
	return filepath.Join(r.ID().String(), string(machine), run.String(), file)
}

func (c *IndexCache) read(name string) ([]byte, bool) {
	if c == nil {
		return nil, false
	}
	path := filepath.Join(c.dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > touchAfter {
		now := time.Now()
		_ = os.Chtimes(path, now, now)
	}
	return b, true
}

func (c *IndexCache) drop(name string) {
	if c != nil {
		_ = os.Remove(filepath.Join(c.dir, name))
	}
}

func (c *IndexCache) write(name string, b []byte) {
	if c == nil || int64(len(b)) > c.maxBytes {
		return
	}
	if err := c.writeFile(filepath.Join(c.dir, name), b); err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.added += int64(len(b)); c.added > c.maxBytes/trimShare {
		c.added = 0
		_ = c.trim()
	}
}

// writeFile makes the file appear whole or not at all. It is not synced: after a
// power cut the check against the hash throws away what is broken.
func (c *IndexCache) writeFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "tmp-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// trim removes the oldest files until the rest leaves room for what is added
// before the next trim, and folders that became empty.
func (c *IndexCache) trim() error {
	type file struct {
		path string
		size int64
		time time.Time
	}
	var files []file
	var folders []string
	var total int64
	err := filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == c.dir {
			return nil // another process removes files too
		}
		if d.IsDir() {
			folders = append(folders, path)
			return nil
		}
		if info, err := d.Info(); err == nil {
			files = append(files, file{path, info.Size(), info.ModTime()})
			total += info.Size()
		}
		return nil
	})
	slices.SortFunc(files, func(a, b file) int {
		return cmp.Or(a.time.Compare(b.time), cmp.Compare(a.path, b.path))
	})
	for _, f := range files {
		if total <= c.maxBytes-c.maxBytes/trimShare {
			break
		}
		if os.Remove(f.path) == nil {
			total -= f.size
		}
	}
	for _, path := range slices.Backward(folders) {
		_ = os.Remove(path) // fails where files are left
	}
	return err
}
