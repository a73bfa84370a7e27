package s3_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/s3"
)

// environment has no files and no metadata service unless a test adds them.
type environment map[string]string

func newEnvironment(t *testing.T) environment {
	return environment{"HOME": t.TempDir(), "AWS_EC2_METADATA_DISABLED": "true"}
}

func (e environment) get(key string) string { return e[key] }

func (e environment) write(t *testing.T, name, content string) {
	t.Helper()
	path := filepath.Join(e["HOME"], ".aws", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// signer returns the access key with which a Store made from c signs.
func signer(t *testing.T, c s3.Credentials) (accessKey, token string) {
	t.Helper()
	server := script(t, false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	o := server.options()
	o.Credentials = c
	if err := putSome(t.Context(), open(t, o)); err != nil {
		t.Fatal(err)
	}
	h := server.requests[0].Header
	_, rest, _ := strings.Cut(h.Get("Authorization"), "Credential=")
	accessKey, _, _ = strings.Cut(rest, "/")
	return accessKey, h.Get("X-Amz-Security-Token")
}

func TestCredentialsComeFromTheFirstSourceThatIsSetUp(t *testing.T) {
	e := newEnvironment(t)
	if _, err := s3.FindCredentials(e.get); err == nil {
		t.Error("credentials out of nothing")
	}
	check := func(what, accessKey, token, source string) {
		t.Helper()
		c, err := s3.FindCredentials(e.get)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		gotKey, gotToken := signer(t, c)
		if gotKey != accessKey || gotToken != token || !strings.Contains(c.Source, source) {
			t.Errorf("%s: key %q, token %q, from %s", what, gotKey, gotToken, c)
		}
		if shown := fmt.Sprintf("%v %+v %#v %s", c, c, c, c); strings.Contains(shown, "secret") || strings.Contains(shown, accessKey+"\"") {
			t.Errorf("%s: printing shows %s", what, shown)
		}
	}
	e.write(t, "credentials", "[default]\naws_access_key_id = DEFAULT\naws_secret_access_key = secret\n\n[work]\naws_access_key_id=WORK\naws_secret_access_key=secret\naws_session_token=tok\n")
	check("default profile", "DEFAULT", "", `profile "default"`)
	e.write(t, "config", "[default]\nregion = eu-central-1\n[profile work]\nregion = eu-west-3\nendpoint_url = http://minio:9000\n[profile other]\naws_access_key_id = OTHER\naws_secret_access_key = secret\n")
	e["AWS_PROFILE"] = "work"
	check("named profile", "WORK", "tok", `profile "work"`)
	e["AWS_PROFILE"] = "other"
	check("keys in the config file", "OTHER", "", `profile "other"`)
	e["AWS_ACCESS_KEY_ID"], e["AWS_SECRET_ACCESS_KEY"], e["AWS_SESSION_TOKEN"] = "ENV", "secret", "envtok"
	check("environment", "ENV", "envtok", "AWS_ACCESS_KEY_ID")
}

func TestASourceThatIsSetUpWrongIsAnErrorAndNotPassedOver(t *testing.T) {
	for name, set := range map[string]map[string]string{
		"half a key":       {"AWS_ACCESS_KEY_ID": "ENV"},
		"no role":          {"AWS_WEB_IDENTITY_TOKEN_FILE": "/none"},
		"no such profile":  {"AWS_PROFILE": "none"},
		"nothing":          {},
		"unreadable files": {"AWS_SHARED_CREDENTIALS_FILE": "/proc/self/mem"},
	} {
		e := newEnvironment(t)
		for k, v := range set {
			e[k] = v
		}
		o, err := s3.FromEnvironment(s3.Options{Bucket: "bucket"}, e.get)
		if !errors.Is(err, store.ErrDenied) {
			t.Errorf("%s: %v, %v", name, o.Credentials, err)
		}
	}
}

func TestServicesThatHandOutCredentialsAreNamedButNotAskedYet(t *testing.T) {
	for source, set := range map[string]map[string]string{
		"web identity": {"AWS_WEB_IDENTITY_TOKEN_FILE": "/none", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
		"container":    {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/creds"},
		"instance":     {"AWS_EC2_METADATA_DISABLED": ""},
	} {
		e := newEnvironment(t)
		for k, v := range set {
			e[k] = v
		}
		c, err := s3.FindCredentials(e.get)
		if err != nil || !strings.Contains(c.Source, source) {
			t.Errorf("%s: %v, %v", source, c, err)
		}
	}
}

func TestContainerCredentialsAreFetchedOrDenied(t *testing.T) {
	good := true
	service := script(t, false, func(w http.ResponseWriter, _ *http.Request) {
		if !good {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprint(w, `{"AccessKeyId":"TASK","SecretAccessKey":"secret","Token":"tok","Expiration":"2099-01-01T00:00:00Z"}`)
	})
	// The library reads the process's environment.
	for _, k := range []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"} {
		t.Setenv(k, "")
	}
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", service.URL+"/creds")
	e := newEnvironment(t)
	e["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = service.URL + "/creds"
	c, err := s3.FindCredentials(e.get)
	if err != nil {
		t.Fatal(err)
	}
	if key, token := signer(t, c); key != "TASK" || token != "tok" {
		t.Errorf("%q, %q", key, token)
	}
	good = false
	c, _ = s3.FindCredentials(e.get)
	server := script(t, false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	o := server.options()
	o.Credentials = c
	if err := putSome(t.Context(), open(t, o)); !errors.Is(err, store.ErrDenied) || len(server.requests) != 0 {
		t.Errorf("a service that hands out nothing: %v, %d requests", err, len(server.requests))
	}
}

func TestRegionEndpointAndCAFileComeFromTheEnvironment(t *testing.T) {
	e := newEnvironment(t)
	e["AWS_ACCESS_KEY_ID"], e["AWS_SECRET_ACCESS_KEY"] = "ENV", "secret"
	from := func(o s3.Options) s3.Options {
		t.Helper()
		o, err := s3.FromEnvironment(o, e.get)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := from(s3.Options{}); o.Endpoint != "s3.amazonaws.com" || !o.Secure || o.Region != "" {
		t.Errorf("nothing set: %+v", o)
	}
	e.write(t, "config", "[default]\nregion = eu-central-1\nendpoint_url = http://minio:9000\nca_bundle = /etc/ca.pem\n[profile cn]\nregion = cn-north-1\n")
	if o := from(s3.Options{}); o.Endpoint != "minio:9000" || o.Secure || o.Region != "eu-central-1" || o.CAFile != "/etc/ca.pem" {
		t.Errorf("profile: %+v", o)
	}
	e["AWS_PROFILE"] = "cn"
	if o := from(s3.Options{}); o.Endpoint != "s3.cn-north-1.amazonaws.com.cn" {
		t.Errorf("China: %+v", o)
	}
	e["AWS_DEFAULT_REGION"], e["AWS_ENDPOINT_URL"], e["AWS_CA_BUNDLE"] = "r1", "https://one.example", "/ca2"
	if o := from(s3.Options{}); o.Endpoint != "one.example" || !o.Secure || o.Region != "r1" || o.CAFile != "/ca2" {
		t.Errorf("environment: %+v", o)
	}
	e["AWS_REGION"], e["AWS_ENDPOINT_URL_S3"] = "r2", "http://two.example:80"
	if o := from(s3.Options{}); o.Endpoint != "two.example:80" || o.Secure || o.Region != "r2" {
		t.Errorf("the more exact wins: %+v", o)
	}
	if o := from(s3.Options{Endpoint: "three", Region: "r3", CAFile: "/ca3"}); o.Endpoint != "three" || o.Region != "r3" || o.CAFile != "/ca3" {
		t.Errorf("options win: %+v", o)
	}
	for _, bad := range []string{"two.example", "ftp://x", "http://key:hunter2@host", "http://host/path", "http://h:b:c", "http://"} {
		e["AWS_ENDPOINT_URL_S3"] = bad
		if _, err := s3.FromEnvironment(s3.Options{}, e.get); !errors.Is(err, store.ErrInvalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("endpoint %q: %v", bad, err)
		}
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	good := s3.Options{Endpoint: "host:1", Bucket: "bucket", Credentials: s3.StaticCredentials("a", "b", "")}
	for name, change := range map[string]func(*s3.Options){
		"no endpoint":     func(o *s3.Options) { o.Endpoint = "" },
		"endpoint is URL": func(o *s3.Options) { o.Endpoint = "http://host" },
		"no bucket":       func(o *s3.Options) { o.Bucket = "" },
		"no credentials":  func(o *s3.Options) { o.Credentials = s3.Credentials{} },
		"dotted prefix":   func(o *s3.Options) { o.Prefix = "a/../b" },
		"empty part":      func(o *s3.Options) { o.Prefix = "/a" },
	} {
		o := good
		change(&o)
		if _, err := s3.Open(o); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
