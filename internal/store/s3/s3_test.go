package s3_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/s3"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options(server *storetest.Server, prefix string) s3.Options {
	return s3.Options{Endpoint: server.Host, Bucket: server.Bucket, Prefix: prefix, Region: server.Region,
		Credentials: s3.StaticCredentials(server.AccessKey, server.SecretKey, "")}
}

func open(t testing.TB, o s3.Options) *s3.Store {
	t.Helper()
	s, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestS3KeepsThePromisesOfAStore(t *testing.T) {
	server := storetest.S3(t)
	var n atomic.Int32
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, options(server, fmt.Sprintf("r%d/sub", n.Add(1))))
	})
}

func TestAnAgentWithoutDeleteRightCanDoAllElse(t *testing.T) {
	server := storetest.S3(t)
	agent := server.Agent(t)
	s := open(t, options(agent, "repo"))
	if err := s.Put(t.Context(), "a/b", store.NewBody([]byte("x")), store.PutOptions{}); err != nil {
		t.Error(err)
	}
	if b, err := store.ReadAll(t.Context(), s, "a/b", 10); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	for _, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Error(err)
		}
	}
	for _, keys := range [][]string{{"a/b"}, {"a/b", "a/c"}} {
		if err := s.Delete(t.Context(), keys); !errors.Is(err, store.ErrDenied) {
			t.Errorf("delete %q: %v", keys, err)
		} else {
			t.Log(err)
		}
	}
	if _, err := s.Stat(t.Context(), "a/b"); err != nil {
		t.Errorf("the object is gone: %v", err)
	}
}

func TestARealServerSaysWhatIsWrong(t *testing.T) {
	server := storetest.S3(t)
	put := func(o s3.Options) error {
		return open(t, o).Put(t.Context(), "a", store.NewBody([]byte("x")), store.PutOptions{})
	}
	check := func(what string, err, class error, hint string) {
		t.Helper()
		if !errors.Is(err, class) || !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: %v, want %v and %q", what, err, class, hint)
		}
	}
	o := options(server, "")
	o.Bucket = "missing"
	check("put into a missing bucket", put(o), store.ErrNoStore, `"missing"`)
	_, err := open(t, o).Stat(t.Context(), "a")
	check("stat in a missing bucket", err, store.ErrNoStore, `"missing"`)
	for _, err := range open(t, o).List(t.Context(), "") {
		check("list of a missing bucket", err, store.ErrNoStore, `"missing"`)
	}
	o = options(server, "")
	o.Credentials = s3.StaticCredentials("nobody", "x", "")
	check("unknown key", put(o), store.ErrDenied, "does not know the access key")
	o.Credentials = s3.StaticCredentials(server.AccessKey, "wrong", "")
	check("wrong secret", put(o), store.ErrDenied, "secret key does not belong")
	o = options(server, "")
	o.Region = "eu-north-1"
	check("wrong region", put(o), store.ErrInvalid, "AWS_REGION")
	o = options(server, "")
	o.Prefix = "big"
	s := open(t, o)
	body := store.NewBody(storetest.Bytes(1, 1<<20))
	check("wrong checksum", s.PutClaiming(t.Context(), "a", body, body.CRC32C()^1), store.ErrCorrupt, "damaged")
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a body with a wrong checksum is there: %v", err)
	}
	o = options(server, "")
	server.Stop()
	check("server down", put(o), store.ErrUnreachable, "right address")
	server.Start(t)
	if err := put(o); err != nil {
		t.Errorf("server up again: %v", err)
	}
}

func BenchmarkPutAndGetOf16MiB(b *testing.B) {
	server := storetest.S3(b)
	s := open(b, options(server, "bench"))
	body := store.NewBody(storetest.Bytes(1, 16<<20))
	storetest.Bench(b, s, body)
}
