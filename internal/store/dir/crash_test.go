package dir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/store/storetest"
	"github.com/qbackup/qbackup/internal/testtool"
)

// record opens a store whose effects are recorded, as those of the device "store".
func record(t *testing.T) (*dir.Store, *sim.Log, string) {
	t.Helper()
	log, root := sim.NewLog(), t.TempDir()
	fs, err := log.Folder("store", root, dir.OS{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := dir.Open(root, dir.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	return s, log, root
}

func putBytes(t *testing.T, s store.Store, key string, b []byte) error {
	return s.Put(t.Context(), key, store.NewBody(b), store.PutOptions{})
}

func TestTheEffectsOfAPutAreInTheDocumentedOrder(t *testing.T) {
	s, log, _ := record(t)
	for _, key := range []string{"a/b/c", "a/b/d"} {
		if err := putBytes(t, s, key, storetest.Bytes(1, 5<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := putBytes(t, s, "a/b/d", nil); !errors.Is(err, store.ErrExists) {
		t.Fatal(err)
	}
	var got []string
	for _, e := range log.Effects() {
		path, _, _ := strings.Cut(e.Path, ".tmp-")
		got = append(got, strings.TrimSpace(string(e.Verb)+" "+path+" "+e.To))
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
	s, log, _ := record(t)
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
		finished = append(finished, done{len(log.Effects()), key})
	}
	deleting := len(log.Effects())
	if err := s.Delete(t.Context(), []string{"data/m/r/p1"}); err != nil {
		t.Fatal(err)
	}
	for cut := range len(log.Effects()) + 1 {
		chances := []float64{0, 1}
		for range testtool.Count(3, 100) {
			chances = append(chances, 0.5)
		}
		for i, chance := range chances {
			left := log.After(sim.PowerCut{Done: cut, Kept: map[string]float64{"store": chance}, Seed: uint64(i)})
			root := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := left.Folders["store"].Write(root); err != nil {
				t.Fatal(err)
			}
			after, err := dir.Open(root, dir.Options{FS: sim.NoSync{}})
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
	if !slices.ContainsFunc(log.Effects(), func(e sim.Effect) bool { return e.Verb == sim.Remove && e.Path == "data/m/r/p1" }) {
		t.Error("the delete was not recorded")
	}
}

func TestAFailureOfAnyEffectGivesItsClassAndLeavesNoHalfObject(t *testing.T) {
	count := func() int {
		s, log, _ := record(t)
		if err := putBytes(t, s, "a/b/c", []byte("content")); err != nil {
			t.Fatal(err)
		}
		return len(log.Effects())
	}()
	for _, c := range []struct {
		errno error
		want  error
	}{
		{syscall.ENOSPC, store.ErrFull}, {syscall.EDQUOT, store.ErrFull}, {syscall.EACCES, store.ErrDenied}, {syscall.EPERM, store.ErrDenied},
		{syscall.EROFS, store.ErrDenied}, {syscall.EIO, syscall.EIO}, {syscall.ESTALE, store.ErrTransient}, {syscall.ENOENT, store.ErrNoStore},
	} {
		for n := range count {
			s, log, root := record(t)
			at := 0
			var hit sim.Effect
			log.Fail = func(e sim.Effect) error {
				at++
				if at-1 == n {
					hit = e
					return &fs.PathError{Op: string(e.Verb), Path: e.Path, Err: c.errno}
				}
				return nil
			}
			err := putBytes(t, s, "a/b/c", []byte("content"))
			// A temporary name that cannot be removed is no failure.
			harmless := hit.Verb == sim.Remove && (c.errno == syscall.EACCES || c.errno == syscall.EPERM || c.errno == syscall.ENOENT)
			if harmless != (err == nil) || !harmless && !errors.Is(err, c.want) {
				t.Errorf("%v at %s %s: %v", c.errno, hit.Verb, hit.Path, err)
			}
			log.Fail = nil
			b, rerr := store.ReadAll(t.Context(), s, "a/b/c", 100)
			if rerr == nil && string(b) != "content" || rerr != nil && !errors.Is(rerr, store.ErrNotFound) {
				t.Errorf("%v at %s: the object is %q, %v", c.errno, hit.Verb, b, rerr)
			}
			if err := putBytes(t, s, "a/b/c", []byte("content")); err != nil && !errors.Is(err, store.ErrExists) {
				t.Errorf("%v at %s: put again: %v", c.errno, hit.Verb, err)
			}
			if left := temporary(t, root); hit.Verb != sim.Remove && left != 0 {
				t.Errorf("%v at %s: %d temporary files are left", c.errno, hit.Verb, left)
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
