package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/store"
)

// Options of Open. The zero value is the usual one.
type Options struct {
	Create bool             // make the folder, and those above it, when missing
	FS     FS               // nil: OS
	Now    func() time.Time // nil: time.Now; decides only which temporary files are stale
}

// Store is a store.Store in a folder.
type Store struct {
	root string
	self os.FileInfo // the root as it was at Open
	fs   FS
	now  func() time.Time

	mu      sync.Mutex
	durable map[string]bool // folders whose own name is known to be on disk
}

var _ store.Store = (*Store)(nil)

// Open returns the store in the folder path, which stays relative when it is.
// A missing folder is ErrNoStore unless Options.Create is set: making it unasked
// would fill the disk below a mount point that is not mounted.
func Open(path string, o Options) (*Store, error) {
	s := &Store{root: filepath.Clean(path), fs: o.FS, now: o.Now, durable: map[string]bool{}}
	if s.fs == nil {
		s.fs = OS{}
	}
	if s.now == nil {
		s.now = time.Now
	}
	if path == "" {
		return nil, store.Fail("open", "", store.ErrInvalid, errors.New("empty path"), "")
	}
	if o.Create {
		if err := s.makeRoot(s.root); err != nil {
			return nil, classify("open", "", err)
		}
	}
	info, err := os.Stat(s.root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, store.Fail("open", "", store.ErrNoStore, err, "mount it, or create the repository with: qbackup init")
	case err != nil:
		return nil, classify("open", "", err)
	case !info.IsDir():
		return nil, store.Fail("open", "", store.ErrInvalid, fmt.Errorf("%s is not a folder", s.root), "")
	}
	s.self = info
	return s, nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := begin(ctx, "stat", key); err != nil {
		return store.Info{}, err
	}
	info, err := os.Lstat(s.path(key))
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist // a folder on the way to other keys
	}
	if err != nil {
		return store.Info{}, s.lookupError("stat", key, err)
	}
	return store.Info{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := begin(ctx, "get", key); err != nil {
		return nil, err
	}
	// Not following links and not blocking keep a foreign link or FIFO in the
	// folder from reading elsewhere or hanging.
	f, err := os.OpenFile(s.path(key), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, s.lookupError("get", key, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, classify("get", key, err)
	}
	n, err = store.CheckRange(key, off, n, info.Size())
	if err != nil {
		f.Close()
		return nil, err
	}
	r := &reader{ended: ctx.Err, f: f, off: off}
	return store.Exact(r, key, n, store.ErrCorrupt), nil
}

// reader reads a file from off on and ends with its context.
type reader struct {
	ended func() error
	f     *os.File
	off   int64
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ended(); err != nil {
		return 0, err
	}
	n, err := r.f.ReadAt(p, r.off)
	r.off += int64(n)
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }

// lookupError classifies an error of looking for an object. That an object is
// missing is believed only while the folder of the store is the one that was
// opened: below an unmounted mount point everything is missing (I7).
func (s *Store) lookupError(op, key string, err error) error {
	failed := classify(op, key, err)
	if !errors.Is(failed, store.ErrNotFound) {
		return failed
	}
	if gone := s.gone(); gone != nil {
		return store.Fail(op, key, store.ErrNoStore, gone, "is it mounted?")
	}
	return failed
}

// gone returns an error when the root is no longer what was opened.
func (s *Store) gone() error {
	info, err := os.Stat(s.root)
	if err == nil && !os.SameFile(info, s.self) {
		err = fmt.Errorf("%s is another folder than before", s.root)
	}
	return err
}

func (s *Store) path(key string) string {
	return filepath.Join(s.root, filepath.FromSlash(key))
}

func begin(ctx context.Context, op, key string) error {
	if err := store.CheckKey(op, key); err != nil {
		return err
	}
	return store.Fail(op, key, nil, ctx.Err(), "")
}
