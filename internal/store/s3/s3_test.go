package s3_test

import (
	"errors"
	"fmt"
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
