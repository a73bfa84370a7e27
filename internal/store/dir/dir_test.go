package dir_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func openNew(t testing.TB, o dir.Options) *dir.Store {
	t.Helper()
	s, err := dir.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFolderKeepsThePromisesOfAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return openNew(t, dir.Options{}) })
}

func BenchmarkPutAndGetOf16MiB(b *testing.B) {
	storetest.Bench(b, openNew(b, dir.Options{}), store.NewBody(storetest.Bytes(1, 16<<20)))
}

func TestLeftOverFilesAreNoObjectsAndAreSweptWhenTheyAreOld(t *testing.T) {
	root := t.TempDir()
	now := time.Now()
	s, err := dir.Open(root, dir.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a/1", "a/2", "b/1"} {
		if err := s.Put(t.Context(), key, store.NewBody(nil), store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a/.tmp-X", "b/.tmp-Y", ".tmp-Z", "a/Foreign", "a/.hidden"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "a/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := ""
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		keys += info.Key + " "
	}
	if keys != "a/1 a/2 b/1 " {
		t.Errorf("listed: %s", keys)
	}
	for _, key := range []string{"a/link", "a/fifo"} {
		if r, err := s.Get(t.Context(), key, 0, -1); err == nil {
			r.Close()
			t.Errorf("%s opens", key)
		}
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if n, err := s.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("swept %d young files, %v", n, err)
	}
	now = now.Add(25 * time.Hour)
	if err := s.Delete(t.Context(), []string{"a/1"}); err != nil {
		t.Fatal(err)
	}
	if temporary(t, root) != 2 {
		t.Error("delete did not sweep its folder")
	}
	if n, err := s.Sweep(t.Context()); n != 2 || err != nil || temporary(t, root) != 0 {
		t.Errorf("swept %d old files, %v", n, err)
	}
	if _, err := os.Stat(filepath.Join(root, "a/.hidden")); err != nil {
		t.Error("swept a foreign file")
	}
}

func TestAnotherFolderInPlaceOfTheStoreIsNoEmptyStore(t *testing.T) {
	root := filepath.Join(t.TempDir(), "repo")
	s, err := dir.Open(root, dir.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func() error { return s.Put(t.Context(), "a", store.NewBody(nil), store.PutOptions{}) }
	if err := put(); err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		t.Helper()
		_, stat := s.Stat(t.Context(), "a")
		_, get := s.Get(t.Context(), "a", 0, -1)
		var list error
		for _, list = range s.List(t.Context(), "") {
		}
		for verb, err := range map[string]error{"stat": stat, "get": get, "list": list, "put": put()} {
			if !errors.Is(err, store.ErrNoStore) || errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %s: %v", what, verb, err)
			}
		}
	}
	if err := os.Rename(root, root+".away"); err != nil {
		t.Fatal(err)
	}
	check("gone")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	check("another folder")
}

func TestRightsOfFoldersAndFilesAreTheOwnersOnly(t *testing.T) {
	root := filepath.Join(t.TempDir(), "x", "repo")
	s, err := dir.Open(root, dir.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/b", store.NewBody([]byte("x")), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{"": 0o700, "a": 0o700, "a/b": 0o600} {
		info, err := os.Stat(filepath.Join(root, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestAFolderInWhichNamesCannotBeMadeIsDenied(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere; the classes are proved with planned errors")
	}
	root := t.TempDir()
	s, err := dir.Open(root, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/b", store.NewBody(nil), store.PutOptions{}); !errors.Is(err, store.ErrDenied) {
		t.Error(err)
	}
}

func TestRenamingReplacesNothingWhereLinksAreMissing(t *testing.T) {
	for _, taken := range []bool{false, true} {
		s := openNew(t, dir.Options{FS: noLinks{}})
		if taken {
			if err := s.Put(t.Context(), "a", store.NewBody([]byte("first")), store.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		err := s.Put(t.Context(), "a", store.NewBody([]byte("second")), store.PutOptions{})
		if taken != errors.Is(err, store.ErrExists) || !taken && err != nil {
			t.Errorf("taken %v: %v", taken, err)
		}
	}
	storetest.Run(t, func(t *testing.T) store.Store { return openNew(t, dir.Options{FS: noLinks{}}) })
}

// noLinks is a file system without hard links: Link of the operating system then
// renames, as dir.OS does after EPERM.
type noLinks struct{ sim.NoSync }

func (noLinks) Link(temp, final string) error {
	return dir.RenameExclusive(temp, final)
}
