package dir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/store/storetest"
	"github.com/qbackup/qbackup/internal/testtool"
)

func record(t *testing.T) (*dir.Store, *recorder) {
	t.Helper()
	r := &recorder{root: t.TempDir()}
	s, err := dir.Open(r.root, dir.Options{FS: r})
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func putBytes(t *testing.T, s store.Store, key string, b []byte) error {
	return s.Put(t.Context(), key, store.NewBody(b), store.PutOptions{})
}

func TestTheEffectsOfAPutAreInTheDocumentedOrder(t *testing.T) {
	s, r := record(t)
	for _, key := range []string{"a/b/c", "a/b/d"} {
		if err := putBytes(t, s, key, storetest.Bytes(1, 5<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := putBytes(t, s, "a/b/d", nil); !errors.Is(err, store.ErrExists) {
		t.Fatal(err)
	}
	var got []string
	for _, e := range r.effects {
		path, _, _ := strings.Cut(e.path, ".tmp-")
		got = append(got, strings.TrimSpace(e.verb+" "+path+" "+e.to))
	}
	want := []string{
		"mkdir a", "syncdir .", "mkdir a/b", "syncdir a",
		"create a/b/", "write a/b/", "write a/b/", "sync a/b/", "close a/b/", "link a/b/ a/b/c", "remove a/b/", "syncdir a/b",
		"create a/b/", "write a/b/", "write a/b/", "sync a/b/", "close a/b/", "link a/b/ a/b/d", "remove a/b/", "syncdir a/b",
		"syncdir a/b",
	}
	if !slices.Equal(got, want) {
		t.Errorf("effects:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestAfterAPowerFailureAtAnyEffectObjectsAreWholeAndFinishedPutsAreThere cuts a
// series of Puts and a Delete at each effect.
func TestAfterAPowerFailureAtAnyEffectObjectsAreWholeAndFinishedPutsAreThere(t *testing.T) {
	s, r := record(t)
	type done struct {
		effects int
		key     string
	}
	var finished []done
	content := map[string][]byte{}
	for i, key := range []string{"repository/1", "data/m/r/p1", "data/m/r/p2", "points/m/r", "data/m/s/p1", "points/m/s"} {
		content[key] = storetest.Bytes(uint64(i), 100+i)
		if err := putBytes(t, s, key, content[key]); err != nil {
			t.Fatal(err)
		}
		finished = append(finished, done{len(r.effects), key})
	}
	deleting := len(r.effects)
	if err := s.Delete(t.Context(), []string{"data/m/r/p1"}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for cut := range len(r.effects) + 1 {
		d := replay(r.effects[:cut])
		chances := []float64{0, 1}
		for range testtool.Count(3, 100) {
			chances = append(chances, 0.5)
		}
		for i, chance := range chances {
			root := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			d.survive(t, root, chance, rng)
			after, err := dir.Open(root, dir.Options{FS: noSync{}})
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]bool{}
			for info, err := range after.List(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				found[info.Key] = true
				b, err := store.ReadAll(t.Context(), after, info.Key, 1000)
				if err != nil || !bytes.Equal(b, content[info.Key]) {
					t.Errorf("cut %d, chance %v: %s has %d bytes, %v", cut, chance, info.Key, len(b), err)
				}
			}
			for _, f := range finished {
				if f.effects <= cut && !found[f.key] && (f.key != "data/m/r/p1" || cut <= deleting) {
					t.Errorf("cut %d, chance %v: %s is lost", cut, chance, f.key)
				}
			}
			// What is left does not stand in the way of the next attempt.
			for key, b := range content {
				if err := putBytes(t, after, key, b); err != nil && !errors.Is(err, store.ErrExists) {
					t.Errorf("cut %d: put again: %v", cut, err)
				}
			}
		}
	}
	if !slices.ContainsFunc(r.effects, func(e effect) bool { return e.verb == "remove" && e.path == "data/m/r/p1" }) {
		t.Error("the delete was not recorded")
	}
}

func TestAFailureOfAnyEffectGivesItsClassAndLeavesNoHalfObject(t *testing.T) {
	count := func() int {
		s, r := record(t)
		if err := putBytes(t, s, "a/b/c", []byte("content")); err != nil {
			t.Fatal(err)
		}
		return len(r.effects)
	}()
	for _, c := range []struct {
		errno error
		want  error
	}{
		{syscall.ENOSPC, store.ErrFull}, {syscall.EDQUOT, store.ErrFull}, {syscall.EACCES, store.ErrDenied}, {syscall.EPERM, store.ErrDenied},
		{syscall.EROFS, store.ErrDenied}, {syscall.EIO, syscall.EIO}, {syscall.ESTALE, store.ErrTransient}, {syscall.ENOENT, store.ErrNoStore},
	} {
		for n := range count {
			s, r := record(t)
			at := 0
			var hit effect
			r.fail = func(e effect) error {
				at++
				if at-1 == n {
					hit = e
					return &fs.PathError{Op: e.verb, Path: e.path, Err: c.errno}
				}
				return nil
			}
			err := putBytes(t, s, "a/b/c", []byte("content"))
			// A temporary name that cannot be removed is no failure.
			harmless := hit.verb == "remove" && (c.errno == syscall.EACCES || c.errno == syscall.EPERM || c.errno == syscall.ENOENT)
			if harmless != (err == nil) || !harmless && !errors.Is(err, c.want) {
				t.Errorf("%v at %s %s: %v", c.errno, hit.verb, hit.path, err)
			}
			r.fail = nil
			b, rerr := store.ReadAll(t.Context(), s, "a/b/c", 100)
			if rerr == nil && string(b) != "content" || rerr != nil && !errors.Is(rerr, store.ErrNotFound) {
				t.Errorf("%v at %s: the object is %q, %v", c.errno, hit.verb, b, rerr)
			}
			if err := putBytes(t, s, "a/b/c", []byte("content")); err != nil && !errors.Is(err, store.ErrExists) {
				t.Errorf("%v at %s: put again: %v", c.errno, hit.verb, err)
			}
			if left := temporary(t, r.root); hit.verb != "remove" && left != 0 {
				t.Errorf("%v at %s: %d temporary files are left", c.errno, hit.verb, left)
			}
		}
	}
}

func temporary(t *testing.T, root string) (n int) {
	t.Helper()
	err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".tmp-") {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// noSync is the operating system's file system in a hurry, for tests whose subject
// is not what is durable.
type noSync struct{ dir.OS }

func (noSync) SyncDir(string) error { return nil }

func (f noSync) Create(path string, mode fs.FileMode) (dir.File, error) {
	file, err := f.OS.Create(path, mode)
	return noSyncFile{file}, err
}

type noSyncFile struct{ dir.File }

func (noSyncFile) Sync() error { return nil }
