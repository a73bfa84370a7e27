package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/qbackup/qbackup/internal/store"
)

// Put implements store.Store; the package comment lists its effects.
func (s *Store) Put(ctx context.Context, key string, body store.Body, _ store.PutOptions) error {
	if err := begin(ctx, "put", key); err != nil {
		return err
	}
	if err := s.gone(); err != nil {
		return store.Fail("put", key, store.ErrNoStore, err, "is it mounted?")
	}
	final := s.path(key)
	folder := filepath.Dir(final)
	if err := s.makeFolder(folder); err != nil {
		return putError(key, err)
	}
	// Link decides; this look only saves writing an object that is there.
	if _, err := os.Lstat(final); err == nil {
		return s.exists(key, folder)
	}
	temp, err := s.writeTemp(ctx, folder, body.Bytes())
	if err != nil {
		return putError(key, err)
	}
	linked := s.fs.Link(temp, final)
	// In a folder where names can be added and not removed (chattr +a) the
	// temporary name stays, a second name of the same bytes. That is no failure.
	err = s.fs.Remove(temp)
	if linked == nil && err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return putError(key, err)
	}
	if errors.Is(linked, fs.ErrExist) {
		return s.exists(key, folder)
	}
	if linked != nil {
		return putError(key, linked)
	}
	return putError(key, s.fs.SyncDir(folder))
}

// exists answers a Put whose name is taken, after making that name durable.
func (s *Store) exists(key, folder string) error {
	if err := s.fs.SyncDir(folder); err != nil {
		return putError(key, err)
	}
	return store.Fail("put", key, store.ErrExists, nil, "")
}

// putError classifies an error of Put. "Not found" and "exists" are the answers
// of the folders, not of the object: the store itself is not as it should be.
func putError(key string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return store.Fail("put", key, store.ErrNoStore, hide(err), "is it mounted?")
	case errors.Is(err, fs.ErrExist):
		return store.Fail("put", key, store.ErrInvalid, hide(err), "")
	}
	return classify("put", key, err)
}

// hide keeps the text of an error and drops its class.
func hide(err error) error { return errors.New(err.Error()) }

// writeTemp writes b durably to a new temporary file and returns its path. When
// it fails it leaves no file behind, as far as the file system allows.
func (s *Store) writeTemp(ctx context.Context, folder string, b []byte) (string, error) {
	path := filepath.Join(folder, tempPrefix+rand.Text())
	f, err := s.fs.Create(path, fileMode)
	if err != nil {
		return "", err
	}
	err = writeAll(ctx, f, b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = s.fs.Remove(path) // the first error is the one to report
		return "", err
	}
	return path, nil
}

func writeAll(ctx context.Context, f File, b []byte) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(b), writeBytes)
		if n == 0 {
			return nil
		}
		if _, err := f.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
}

// makeFolder makes the folders from the root down to folder and makes their names
// durable, those too that another process has just made and not yet synced.
func (s *Store) makeFolder(folder string) error {
	if folder == s.root || s.isDurable(folder) {
		return nil
	}
	above := filepath.Dir(folder)
	if err := s.makeFolder(above); err != nil {
		return err
	}
	return s.makeOne(folder, above)
}

// makeRoot is makeFolder for the root itself and what is above it.
func (s *Store) makeRoot(folder string) error {
	if info, err := os.Stat(folder); err == nil && info.IsDir() {
		return nil
	}
	above := filepath.Dir(folder)
	if above != folder {
		if err := s.makeRoot(above); err != nil {
			return err
		}
	}
	return s.makeOne(folder, above)
}

func (s *Store) makeOne(folder, above string) error {
	err := s.fs.Mkdir(folder, folderMode)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.fs.SyncDir(above); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable[folder] = true
	return nil
}

func (s *Store) isDurable(folder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable[folder]
}
