package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/store"
)

// Run checks a Store. open returns an empty one for each subtest, and cleans up
// through t.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"an object reads back as it was put", readsBack},
		{"every range inside an object can be read and none beyond it", ranges},
		{"put never overwrites", neverOverwrites},
		{"of parallel writers to one key exactly one wins", oneWriterWins},
		{"a missing object is not found", missing},
		{"a list is complete, ascending and limited to its prefix", lists},
		{"a list of more than a thousand objects is complete", listsManyPages},
		{"delete removes what it names and forgives what is missing", deletes},
		{"an ended context ends every verb", cancels},
		{"keys that are none are refused", refusesKeys},
		{"parallel readers see whole objects", parallelReaders},
		{"ReadAll stops at its limit", readAllLimit},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func put(t *testing.T, s store.Store, key string, b []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, store.NewBody(b), store.PutOptions{}); err != nil {
		t.Fatalf("put: %v", err)
	}
}

func get(ctx context.Context, s store.Store, key string, off, n int64) ([]byte, error) {
	r, err := s.Get(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func wantClass(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: got %v, want %v", what, err, class)
		return
	}
	var placed *store.Error
	if !errors.As(err, &placed) || placed.Op == "" {
		t.Errorf("%s: error %v has no place", what, err)
	}
}

// Bytes returns n bytes that depend on seed alone.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	_, _ = r.Read(b)
	return b
}

func readsBack(t *testing.T, s store.Store) {
	before := time.Now().Add(-time.Minute)
	for i, size := range []int{0, 1, 100, 4095, 4096, 65536, 5<<20 + 3, 16 << 20} {
		key := fmt.Sprintf("data/m/r/p%d", i)
		want := Bytes(uint64(i), size)
		class := store.Metadata
		if i%2 == 0 {
			class = store.Data
		}
		if err := s.Put(t.Context(), key, store.NewBody(want), store.PutOptions{Class: class}); err != nil {
			t.Fatalf("put of %d bytes: %v", size, err)
		}
		got, err := get(t.Context(), s, key, 0, -1)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("get of %d bytes: %d bytes, %v", size, len(got), err)
		}
		info, err := s.Stat(t.Context(), key)
		if err != nil || info.Key != key || info.Size != int64(size) {
			t.Errorf("stat of %d bytes: %+v, %v", size, info, err)
		}
		if info.Modified.Before(before) || info.Modified.After(time.Now().Add(time.Minute)) {
			t.Errorf("stat: modified %v is not now", info.Modified)
		}
	}
}

func ranges(t *testing.T, s store.Store) {
	const size = 1000
	want := Bytes(1, size)
	put(t, s, "a", want)
	put(t, s, "empty", nil)
	for _, c := range []struct{ off, n, end int64 }{
		{0, -1, size}, {0, size, size}, {0, 1, 1}, {0, 0, 0}, {1, 0, 1}, {size, 0, size}, {size, -1, size},
		{999, 1, size}, {999, -1, size}, {1, -1, size}, {100, 200, 300}, {500, 500, size},
	} {
		got, err := get(t.Context(), s, "a", c.off, c.n)
		if err != nil || !bytes.Equal(got, want[c.off:c.end]) {
			t.Errorf("get %d+%d: %d bytes, %v", c.off, c.n, len(got), err)
		}
	}
	for _, c := range []struct{ off, n int64 }{
		{size, 1}, {999, 2}, {0, size + 1}, {size + 1, -1}, {size + 1, 0}, {1 << 40, 10}, {1 << 62, 1 << 62},
	} {
		_, err := get(t.Context(), s, "a", c.off, c.n)
		wantClass(t, fmt.Sprintf("get %d+%d of %d", c.off, c.n, size), err, store.ErrRange)
	}
	_, err := get(t.Context(), s, "a", -1, 1)
	wantClass(t, "get at a negative offset", err, store.ErrInvalid)
	for _, n := range []int64{-1, 0} {
		if got, err := get(t.Context(), s, "empty", 0, n); err != nil || len(got) != 0 {
			t.Errorf("get 0+%d of an empty object: %d bytes, %v", n, len(got), err)
		}
	}
	_, err = get(t.Context(), s, "empty", 0, 1)
	wantClass(t, "get 0+1 of an empty object", err, store.ErrRange)
	for _, n := range []int64{-1, 0, 1} {
		_, err = get(t.Context(), s, "none", 0, n)
		wantClass(t, fmt.Sprintf("get 0+%d of a missing object", n), err, store.ErrNotFound)
	}
}

// refusals is how often a put of a large body is tried again when its answer was lost.
const refusals = 10

func neverOverwrites(t *testing.T, s store.Store) {
	first := []byte("first")
	put(t, s, "points/m/r", first)
	for _, again := range []string{"first", "second", "", strings.Repeat("x", 1<<20)} {
		put := func() error {
			return s.Put(t.Context(), "points/m/r", store.NewBody([]byte(again)), store.PutOptions{})
		}
		err := put()
		// A server may refuse, and hang up, before it has read a body that does not fit into the buffers between: then its
		// answer is lost now and then. Whoever asks again gets it.
		for range refusals {
			if !errors.Is(err, store.ErrTransient) || len(again) < 64<<10 {
				break
			}
			err = put()
		}
		wantClass(t, "second put", err, store.ErrExists)
	}
	got, err := get(t.Context(), s, "points/m/r", 0, -1)
	if err != nil || !bytes.Equal(got, first) {
		t.Errorf("after refused puts the object is %q, %v", got, err)
	}
}

func oneWriterWins(t *testing.T, s store.Store) {
	const rounds, writers = 5, 8
	for round := range rounds {
		key := fmt.Sprintf("slot/r%d", round)
		var wins atomic.Int32
		var winner atomic.Int64
		var g errgroup.Group
		start := make(chan struct{})
		for w := range writers {
			body := store.NewBody(Bytes(uint64(w), 10000+w))
			g.Go(func() error {
				<-start
				err := s.Put(t.Context(), key, body, store.PutOptions{})
				if err == nil {
					wins.Add(1)
					winner.Store(int64(w))
				} else if !errors.Is(err, store.ErrExists) {
					return err
				}
				return nil
			})
		}
		close(start)
		if err := g.Wait(); err != nil {
			t.Fatalf("a losing put must say ErrExists: %v", err)
		}
		if wins.Load() != 1 {
			t.Fatalf("%d of %d parallel puts won", wins.Load(), writers)
		}
		got, err := get(t.Context(), s, key, 0, -1)
		if w := int(winner.Load()); err != nil || !bytes.Equal(got, Bytes(uint64(w), 10000+w)) {
			t.Errorf("the object is not the winner's: %d bytes, %v", len(got), err)
		}
	}
}

func missing(t *testing.T, s store.Store) {
	put(t, s, "a/b/c", []byte("x"))
	for _, key := range []string{"none", "a/none", "a/b/none", "none/none/none", "a/b", "a"} {
		_, err := s.Stat(t.Context(), key)
		wantClass(t, "stat "+key, err, store.ErrNotFound)
		_, err = get(t.Context(), s, key, 0, -1)
		wantClass(t, "get "+key, err, store.ErrNotFound)
	}
}

func keysOf(t *testing.T, s store.Store, prefix string) []string {
	t.Helper()
	var keys []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func lists(t *testing.T, s store.Store) {
	if keys := keysOf(t, s, ""); len(keys) != 0 {
		t.Fatalf("a new store has %q", keys)
	}
	// Names round the slash in byte order ('-' and '.' before it, digits after)
	// catch a listing that sorts folder by folder.
	all := []string{
		"a-b", "a.b", "a/1", "a/10", "a/2", "a/b/c", "a/b-c", "a/b.c/d", "a0", "ab/c", "b",
		"points/web-2/r1", "points/web.x/r1", "points/web/r1", "points/web/r2", "points/web2/r1",
	}
	for i, key := range all {
		put(t, s, key, make([]byte, i))
	}
	sizes := map[string]int64{}
	for i, key := range all {
		sizes[key] = int64(i)
	}
	slices.Sort(all)
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/b/", "a/b/c", "a/1", "a-", "p", "points/", "points/web",
		"points/web/", "points/web/r", "points/web/r1", "none", "none/", "points/none/x"} {
		var want []string
		for _, key := range all {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		if got := keysOf(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("list %q:\n got %q\nwant %q", prefix, got, want)
		}
	}
	for info, err := range s.List(t.Context(), "a") {
		if err != nil || info.Size != sizes[info.Key] || info.Modified.IsZero() {
			t.Errorf("list: %+v, %v; want %d bytes", info, err, sizes[info.Key])
		}
	}
	for range s.List(t.Context(), "") {
		break // leaving early is allowed
	}
}

func listsManyPages(t *testing.T, s store.Store) {
	const count = 1105 // a page of S3 has 1,000
	var want []string
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(16)
	for i := range count {
		key := fmt.Sprintf("many/k%05d", i)
		want = append(want, key)
		g.Go(func() error {
			return s.Put(ctx, key, store.NewBody([]byte(key)), store.PutOptions{})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, s, "many/"); !slices.Equal(got, want) {
		t.Errorf("list has %d keys, want %d", len(got), count)
	}
	if err := s.Delete(t.Context(), want); err != nil {
		t.Fatalf("delete of %d keys: %v", count, err)
	}
	if got := keysOf(t, s, "many/"); len(got) != 0 {
		t.Errorf("after delete %d keys are left", len(got))
	}
}

func deletes(t *testing.T, s store.Store) {
	for _, key := range []string{"d/1", "d/2", "d/3", "e"} {
		put(t, s, key, []byte(key))
	}
	for _, keys := range [][]string{nil, {"none"}, {"d/1", "none/x", "d/3", "d/1"}, {"d/1"}, {"d"}} {
		if err := s.Delete(t.Context(), keys); err != nil {
			t.Errorf("delete %q: %v", keys, err)
		}
	}
	if got := keysOf(t, s, ""); !slices.Equal(got, []string{"d/2", "e"}) {
		t.Errorf("left are %q", got)
	}
	put(t, s, "d/1", []byte("again")) // a deleted key is free
}

func cancels(t *testing.T, s store.Store) {
	put(t, s, "a", []byte("abc"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantClass(t, "put", s.Put(ctx, "b", store.NewBody([]byte("x")), store.PutOptions{}), context.Canceled)
	_, err := s.Get(ctx, "a", 0, -1)
	wantClass(t, "get", err, context.Canceled)
	_, err = s.Stat(ctx, "a")
	wantClass(t, "stat", err, context.Canceled)
	wantClass(t, "delete", s.Delete(ctx, []string{"a"}), context.Canceled)
	yields := 0
	for _, err := range s.List(ctx, "") {
		yields++
		wantClass(t, "list", err, context.Canceled)
	}
	if yields != 1 {
		t.Errorf("list with an ended context yields %d times, want one error", yields)
	}
	if _, err := s.Stat(t.Context(), "a"); err != nil {
		t.Errorf("the object after a cancelled delete: %v", err)
	}
}

func refusesKeys(t *testing.T, s store.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".a", "a/.b", "A", "a b", "a\x00", "ü",
		`a\b`, "a:b", strings.Repeat("a", 300), strings.Repeat("a/", 1000) + "a"} {
		what := fmt.Sprintf("%.20q", key)
		wantClass(t, "put "+what, s.Put(t.Context(), key, store.NewBody(nil), store.PutOptions{}), store.ErrInvalid)
		_, err := s.Get(t.Context(), key, 0, -1)
		wantClass(t, "get "+what, err, store.ErrInvalid)
		_, err = s.Stat(t.Context(), key)
		wantClass(t, "stat "+what, err, store.ErrInvalid)
		wantClass(t, "delete "+what, s.Delete(t.Context(), []string{key}), store.ErrInvalid)
	}
	for _, prefix := range []string{"/", "..", "a//", "A", ".", "a/."} {
		for _, err := range s.List(t.Context(), prefix) {
			wantClass(t, "list "+prefix, err, store.ErrInvalid)
		}
	}
}

func parallelReaders(t *testing.T, s store.Store) {
	want := Bytes(7, 1<<20)
	put(t, s, "big", want)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			off := int64(i) * 60000
			got, err := get(t.Context(), s, "big", off, 70000)
			if err != nil || !bytes.Equal(got, want[off:off+70000]) {
				t.Errorf("reader %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
}

func readAllLimit(t *testing.T, s store.Store) {
	put(t, s, "a", []byte("12345"))
	if b, err := store.ReadAll(t.Context(), s, "a", 5); err != nil || string(b) != "12345" {
		t.Errorf("ReadAll at its limit: %q, %v", b, err)
	}
	_, err := store.ReadAll(t.Context(), s, "a", 4)
	wantClass(t, "ReadAll beyond its limit", err, store.ErrCorrupt)
	_, err = store.ReadAll(t.Context(), s, "b", 4)
	wantClass(t, "ReadAll of nothing", err, store.ErrNotFound)
}
