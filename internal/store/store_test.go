package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/qbackup/qbackup/internal/store"
)

func TestKeysAreRelativePathsOfPlainSegments(t *testing.T) {
	for _, key := range []string{"a", "repository/1", "data/web-1.example_2/0123/p00000001", "a..b", "-", strings.Repeat("a", 200)} {
		if !store.ValidKey(key) || !store.ValidPrefix(key) || !store.ValidPrefix(key+"/") {
			t.Errorf("%q is a key", key)
		}
	}
	for _, key := range []string{"", "/", "a/", "/a", "a//b", ".", "..", ".a", "a/..", "a/.b", "A", "a b", "ä", "a\n", strings.Repeat("a", 201),
		strings.Repeat("ab/", 300) + "a"} {
		if store.ValidKey(key) {
			t.Errorf("%q is no key", key)
		}
	}
	for _, prefix := range []string{"/", "//", "a//", ".", "a/.", "..", "A"} {
		if store.ValidPrefix(prefix) {
			t.Errorf("%q begins no key", prefix)
		}
	}
	if !store.ValidPrefix("") {
		t.Error("the empty prefix begins every key")
	}
}

func FuzzAValidKeyStaysBelowItsFolder(f *testing.F) {
	for _, s := range []string{"a", "a/b", "../a", "a/./b", "/a", "a//b", ".tmp-x", "a\x00b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if !store.ValidKey(key) {
			return
		}
		for _, segment := range strings.Split(key, "/") {
			if segment == "" || segment[0] == '.' || strings.Trim(segment, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
				t.Errorf("%q has segment %q", key, segment)
			}
		}
		for i := range key {
			if !store.ValidPrefix(key[:i]) && !(i > 0 && key[i-1] == '/') {
				t.Errorf("%q begins the key %q", key[:i], key)
			}
		}
	})
}

func TestBodyCarriesItsChecksum(t *testing.T) {
	// RFC 3720, B.4: 32 bytes of zeros have the CRC32C aa 36 91 8a (as sent).
	b := store.NewBody(make([]byte, 32))
	if b.CRC32C() != 0x8a9136aa || b.Size() != 32 || b.Reader().Len() != 32 {
		t.Errorf("%08x %d %d", b.CRC32C(), b.Size(), b.Reader().Len())
	}
	if empty := store.NewBody(nil); empty.CRC32C() != 0 || empty.Size() != 0 || empty.Bytes() != nil {
		t.Error("empty body")
	}
}

func TestErrorsTellPlaceCauseAndAdviceAndKeepTheirClass(t *testing.T) {
	cause := errors.New("507 quota")
	err := store.Fail("put", "a/b", store.ErrFull, cause, "raise the quota")
	if got := err.Error(); got != "put a/b: store is full: 507 quota (raise the quota)" {
		t.Error(got)
	}
	if !errors.Is(err, store.ErrFull) || !errors.Is(err, cause) || errors.Is(err, store.ErrDenied) {
		t.Error("class or cause is lost")
	}
	if again := store.Wrap("get", "x", fmt.Errorf("upload: %w", err)); !strings.HasPrefix(again.Error(), "upload: put a/b") {
		t.Error(again)
	}
	if store.Fail("put", "a", nil, nil, "") != nil || store.Wrap("put", "a", nil) != nil {
		t.Error("no error became one")
	}
	for _, narrow := range []error{store.ErrUnreachable, store.ErrBusy} {
		if err := store.Fail("get", "", narrow, cause, ""); !errors.Is(err, narrow) || !errors.Is(err, store.ErrTransient) {
			t.Errorf("%v is not transient", err)
		}
	}
	if errors.Is(store.ErrTransient, store.ErrBusy) {
		t.Error("every transient error is busy")
	}
	if got := store.Fail("list", "", store.ErrTransient, store.ErrBusy, "").Error(); got != "list: store asks to slow down" {
		t.Error(got)
	}
}

func TestExactNeverEndsEarlyInSilence(t *testing.T) {
	open := func(r io.Reader, n int64) io.ReadCloser {
		return store.Exact(io.NopCloser(r), "k", n, store.ErrTransient)
	}
	for _, n := range []int64{0, 1, 9, 10} {
		for name, r := range map[string]io.Reader{
			"plain":     strings.NewReader("0123456789"),
			"bytewise":  iotest.OneByteReader(strings.NewReader("0123456789")),
			"early EOF": iotest.DataErrReader(strings.NewReader("0123456789")),
		} {
			if got, err := io.ReadAll(open(r, n)); err != nil || string(got) != "0123456789"[:n] {
				t.Errorf("%s, %d: %q, %v", name, n, got, err)
			}
		}
	}
	r := open(strings.NewReader("0123456789"), 11)
	got, err := io.ReadAll(r)
	if len(got) != 10 || !errors.Is(err, store.ErrTransient) || !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		t.Errorf("short: %q, %v", got, err)
	}
	if _, again := r.Read(make([]byte, 1)); again != err {
		t.Errorf("the error does not stay: %v", again)
	}
	_, err = io.ReadAll(open(iotest.ErrReader(context.Canceled), 11))
	if !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrTransient) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRangesLieInsideTheObject(t *testing.T) {
	for _, c := range []struct{ off, n, size, want int64 }{
		{0, -1, 0, 0}, {0, 0, 0, 0}, {0, -1, 5, 5}, {5, -1, 5, 0}, {5, 0, 5, 0}, {4, 1, 5, 1}, {0, 5, 5, 5},
	} {
		if n, err := store.CheckRange("k", c.off, c.n, c.size); n != c.want || err != nil {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
	}
	for _, c := range []struct{ off, n, size int64 }{{0, 1, 0}, {1, -1, 0}, {5, 1, 5}, {0, 6, 5}, {6, 0, 5}, {1 << 62, 1 << 62, 5}} {
		if _, err := store.CheckRange("k", c.off, c.n, c.size); !errors.Is(err, store.ErrRange) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
