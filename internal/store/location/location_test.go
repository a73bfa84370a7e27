package location_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/store/fault"
	"github.com/qbackup/qbackup/internal/store/limit"
	"github.com/qbackup/qbackup/internal/store/location"
	"github.com/qbackup/qbackup/internal/store/mem"
	"github.com/qbackup/qbackup/internal/store/observe"
	"github.com/qbackup/qbackup/internal/store/retry"
	"github.com/qbackup/qbackup/internal/store/s3"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func TestAddresses(t *testing.T) {
	for text, want := range map[string]location.Location{
		"/srv/backup":                     {Path: "/srv/backup"},
		"backup":                          {Path: "backup"},
		"./a:b":                           {Path: "./a:b"},
		"../x/":                           {Path: "../x/"},
		"dir/s3:x":                        {Path: "dir/s3:x"},
		"file:/srv/backup":                {Path: "/srv/backup"},
		"file:backup":                     {Path: "backup"},
		"file:s3:x":                       {Path: "s3:x"},
		"file:///srv/b":                   {Path: "/srv/b"},
		"s3://bucket":                     {Bucket: "bucket"},
		"s3://bucket/":                    {Bucket: "bucket"},
		"s3://bucket/a/b/":                {Bucket: "bucket", Prefix: "a/b"},
		"s3:http://127.0.0.1:9000/bucket": {Bucket: "bucket", Host: "127.0.0.1:9000"},
		"s3:https://s3.example.com/bucket/Some.Prefix/x": {Bucket: "bucket", Prefix: "Some.Prefix/x", Host: "s3.example.com", Secure: true},
		"s3:https://[::1]:7070/bucket/p":                 {Bucket: "bucket", Prefix: "p", Host: "[::1]:7070", Secure: true},
	} {
		got, err := location.Parse(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if again, err := location.Parse(got.String()); err != nil || again != got {
			t.Errorf("%q prints as %q, which reads as %+v, %v", text, got, again, err)
		}
	}
}

func TestAddressesThatAreNone(t *testing.T) {
	for _, text := range []string{"", "file:", "file://host/path", "http://host/bucket", "sftp:host", "s3:", "s3:bucket", "s3:host/bucket", "s3:http:///bucket",
		"s3://", "s3://ab", "s3://UPPER", "s3://bucket//a", "s3://bucket/../a", "s3:http://host", "s3:http://host/", "s3:http://host/b?x=1", "s3:http://host/bucket#x",
		"s3:ftp://host/bucket", "s3:http://host:port:1/bucket", "s3:http://host/bucket/%2e%2e", "a\nb"} {
		if l, err := location.Parse(text); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, l, err)
		}
	}
}

func TestSecretsInAddressesAreRefusedAndNotShown(t *testing.T) {
	for _, text := range []string{"s3:https://AKIA:hunter2@host/bucket", "s3://AKIA:hunter2@bucket/p", "s3:https://AKIA:hunter2@ho st/bucket",
		"s3:https://host/bucket?secret=hunter2", "hunter2:x", "s3:https://hunter2@/bucket"} {
		_, err := location.Parse(text)
		if !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") && !strings.HasPrefix(text, "hunter2") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "/a", "file:a", "file:///a", "s3://bucket/p", "s3:http://h:1/bucket/p/q", "s3:https://u:p@h/bucket", "a:b", "file:file:x", "file:////x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := location.Parse(text)
		if err != nil {
			return
		}
		if (l.Path == "") == (l.Bucket == "") {
			t.Fatalf("%q: %+v", text, l)
		}
		if again, err := location.Parse(l.String()); err != nil || again != l {
			t.Fatalf("%q prints as %q, which reads as %+v, %v; was %+v", text, l.String(), again, err, l)
		}
		if l.Bucket != "" && strings.Contains(l.String(), "@") && !strings.Contains(l.Prefix, "@") {
			t.Fatalf("%q keeps a user name: %q", text, l)
		}
	})
}

func openAt(t *testing.T, text string, o location.Options) *location.Store {
	t.Helper()
	l, err := location.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	s, err := location.Open(t.Context(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestAnOpenedFolderKeepsThePromisesOfAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return openAt(t, t.TempDir(), location.Options{Stats: new(observe.Stats), Limit: limit.Options{RequestsPerSecond: 1e6}})
	})
}

func TestAMissingFolderIsNoStoreUnlessItMayBeMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	_, err := location.Open(t.Context(), location.Location{Path: path}, location.Options{})
	if !errors.Is(err, store.ErrNoStore) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	openAt(t, path, location.Options{Create: true})
	openAt(t, path, location.Options{})
	t.Chdir(filepath.Dir(path))
	openAt(t, "b", location.Options{})
	file := filepath.Join(path, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := location.Open(t.Context(), location.Location{Path: file}, location.Options{}); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("a file as folder: %v", err)
	}
}

func TestTheEnvironmentOpensABucket(t *testing.T) {
	server := storetest.S3(t)
	env := server.Environ()
	var stats observe.Stats
	o := location.Options{Stats: &stats, Getenv: func(k string) string { return env[k] }}
	s := openAt(t, server.Location("repo/x"), o)
	if err := s.Put(t.Context(), "a", store.NewBody([]byte("hello")), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	env["AWS_ENDPOINT_URL"] = server.Endpoint
	s = openAt(t, "s3://"+server.Bucket+"/repo/x", o)
	if b, err := store.ReadAll(t.Context(), s, "a", 10); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if stats.Calls(observe.Put, observe.OK) != 1 || stats.Calls(observe.Get, observe.OK) != 1 || stats.BytesSent.Load() != 5 || stats.BytesReceived.Load() != 5 {
		t.Error("the calls were not counted")
	}
	if _, ok := store.As[*s3.Store](s); !ok {
		t.Error("the driver is out of reach")
	}
	delete(env, "AWS_ACCESS_KEY_ID")
	l, _ := location.Parse(server.Location(""))
	if _, err := location.Open(t.Context(), l, o); !errors.Is(err, store.ErrDenied) {
		t.Errorf("without credentials: %v", err)
	}
}

func TestAnEndedContextOpensNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := location.Open(ctx, location.Location{Path: t.TempDir()}, location.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestOptionalInterfacesAreFoundBelowTheDecorators(t *testing.T) {
	s := openAt(t, t.TempDir(), location.Options{Stats: new(observe.Stats), Limit: limit.Options{RequestsPerSecond: 100}})
	if d, ok := store.As[*dir.Store](s); !ok || d == nil {
		t.Error("no folder below")
	}
	if _, ok := store.As[*s3.Store](retry.New(fault.New(mem.New(), 0), retry.Options{})); ok {
		t.Error("found what is not there")
	}
}
