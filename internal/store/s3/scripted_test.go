package s3_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/s3"
)

// scripted is a server that gives prepared answers and keeps what it was sent.
type scripted struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
}

func script(t *testing.T, tls bool, answer http.HandlerFunc) *scripted {
	t.Helper()
	s := &scripted{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.requests = append(s.requests, r)
		s.bodies = append(s.bodies, string(b))
		s.mu.Unlock()
		answer(w, r)
	})
	if tls {
		s.Server = httptest.NewUnstartedServer(handler)
		s.Server.Config.ErrorLog = nil
		s.Server.StartTLS()
	} else {
		s.Server = httptest.NewServer(handler)
	}
	t.Cleanup(s.Server.Close)
	return s
}

func (s *scripted) options() s3.Options {
	return s3.Options{
		Endpoint: s.Listener.Addr().String(), Bucket: "bucket", Prefix: "pre", Addressing: s3.PathStyle,
		Credentials: s3.StaticCredentials("access", "hunter2", ""),
	}
}

func answerError(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		if code != "" {
			fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no way</Message><RequestId>1</RequestId></Error>`, code)
		}
	}
}

func putSome(ctx context.Context, s store.Store) error {
	return s.Put(ctx, "a", store.NewBody([]byte("hello")), store.PutOptions{Class: store.Data})
}

func TestAPutIsOneRequestWithConditionChecksumClassAndEncryption(t *testing.T) {
	server := script(t, false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	o := server.options()
	o.DataClass, o.MetadataClass = "STANDARD_IA", "STANDARD"
	o.Encryption = s3.Encryption{Mode: s3.SSEKMS, KeyID: "key-1"}
	s := open(t, o)
	if err := putSome(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "b", store.NewBody(nil), store.PutOptions{Class: store.Metadata}); err != nil {
		t.Fatal(err)
	}
	if len(server.requests) != 2 {
		t.Fatalf("%d requests", len(server.requests))
	}
	r := server.requests[0]
	if r.Method != http.MethodPut || r.URL.Path != "/bucket/pre/a" || r.URL.RawQuery != "" || server.bodies[0] != "hello" || r.ContentLength != 5 {
		t.Errorf("%s %s, %d bytes %q", r.Method, r.URL, r.ContentLength, server.bodies[0])
	}
	for header, want := range map[string]string{
		"If-None-Match":                               "*",
		"X-Amz-Checksum-Crc32c":                       "mnG7TA==", // of "hello"
		"X-Amz-Storage-Class":                         "STANDARD_IA",
		"X-Amz-Server-Side-Encryption":                "aws:kms",
		"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1",
		"X-Amz-Content-Sha256":                        "UNSIGNED-PAYLOAD",
		"Content-Encoding":                            "",
		"X-Amz-Trailer":                               "",
		"X-Amz-Sdk-Checksum-Algorithm":                "",
	} {
		if got := r.Header.Get(header); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
	if !strings.Contains(r.Header.Get("Authorization"), "/us-east-1/s3/") || strings.Contains(fmt.Sprint(r.Header), "hunter2") {
		t.Errorf("authorization: %q", r.Header.Get("Authorization"))
	}
	r = server.requests[1]
	if r.Header.Get("X-Amz-Storage-Class") != "STANDARD" || r.Header.Get("X-Amz-Checksum-Crc32c") != "AAAAAA==" || r.Header.Get("Content-Length") == "-1" {
		t.Errorf("empty metadata: %v", r.Header)
	}

	o.Unconditional, o.Checksum, o.Encryption = true, s3.NoChecksum, s3.Encryption{Mode: s3.SSES3}
	if err := putSome(t.Context(), open(t, o)); err != nil {
		t.Fatal(err)
	}
	r = server.requests[2]
	if r.Header.Get("If-None-Match") != "" || r.Header.Get("X-Amz-Checksum-Crc32c") != "" || r.Header.Get("X-Amz-Server-Side-Encryption") != "AES256" {
		t.Errorf("plain: %v", r.Header)
	}
	for name := range r.Header {
		if strings.Contains(strings.ToLower(name), "checksum") {
			t.Errorf("the client added %s by itself", name)
		}
	}
}

func TestAnswersBecomeClassesAfterOneRequest(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
		hint   string
	}{
		{412, "PreconditionFailed", store.ErrExists, ""},
		{412, "", store.ErrExists, ""},
		{409, "ConditionalRequestConflict", store.ErrTransient, ""},
		{409, "OperationAborted", store.ErrTransient, ""},
		{403, "AccessDenied", store.ErrDenied, "s3:PutObject"},
		{403, "", store.ErrDenied, "s3:PutObject"},
		{401, "Unknown", store.ErrDenied, ""},
		{403, "InvalidAccessKeyId", store.ErrDenied, "does not know the access key"},
		{403, "SignatureDoesNotMatch", store.ErrDenied, "the configuration"},
		{400, "ExpiredToken", store.ErrDenied, "expired"},
		{403, "RequestTimeTooSkewed", store.ErrDenied, "clock"},
		{404, "NoSuchBucket", store.ErrNoStore, `create bucket "bucket"`},
		{404, "NoSuchKey", store.ErrNotFound, ""},
		{404, "XAdminUserNotFound", store.ErrDenied, "does not know the access key"},
		{404, "NoSuchTenant", store.ErrInvalid, "not one that S3 gives"},
		{503, "SlowDown", store.ErrBusy, ""},
		{503, "", store.ErrBusy, ""},
		{429, "TooManyRequests", store.ErrBusy, ""},
		{500, "InternalError", store.ErrTransient, ""},
		{500, "", store.ErrTransient, ""},
		{502, "", store.ErrTransient, ""},
		{504, "", store.ErrTransient, ""},
		{520, "", store.ErrTransient, ""},
		{408, "RequestTimeout", store.ErrTransient, ""},
		{400, "RequestTimeout", store.ErrTransient, ""},
		{400, "IncompleteBody", store.ErrTransient, ""},
		{507, "XMinioStorageFull", store.ErrFull, "free space"},
		{507, "", store.ErrFull, ""},
		{403, "QuotaExceeded", store.ErrFull, ""},
		{400, "XMinioAdminBucketQuotaExceeded", store.ErrFull, ""},
		{400, "BadDigest", store.ErrCorrupt, ""},
		{400, "XAmzContentChecksumMismatch", store.ErrCorrupt, ""},
		{400, "AuthorizationHeaderMalformed", store.ErrInvalid, "AWS_REGION"},
		{501, "NotImplemented", store.ErrInvalid, ""},
	} {
		server := script(t, false, answerError(c.status, c.code))
		err := putSome(t.Context(), open(t, server.options()))
		if !errors.Is(err, c.want) {
			t.Errorf("%d %s: %v, want %v", c.status, c.code, err, c.want)
			continue
		}
		if narrower := errors.Is(err, store.ErrBusy); narrower != (c.want == store.ErrBusy) {
			t.Errorf("%d %s: busy is %v", c.status, c.code, narrower)
		}
		if !strings.Contains(err.Error(), c.hint) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%d %s: no hint %q in: %v", c.status, c.code, c.hint, err)
		}
		if len(server.requests) != 1 {
			t.Errorf("%d %s: %d requests, want one attempt", c.status, c.code, len(server.requests))
		}
	}
}

func TestAMissingBucketIsNotAMissingObject(t *testing.T) {
	// HEAD has no body that could say what is missing.
	server := script(t, false, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		answerError(404, "NoSuchBucket")(w, r)
	})
	s := open(t, server.options())
	_, stat := s.Stat(t.Context(), "a")
	_, get := s.Get(t.Context(), "a", 0, -1)
	var list error
	for _, list = range s.List(t.Context(), "") {
	}
	for op, err := range map[string]error{"stat": stat, "get": get, "list": list, "put": putSome(t.Context(), s)} {
		if !errors.Is(err, store.ErrNoStore) || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// object answers GETs as a service does, with a fault.
func object(content string, spoil func(w http.ResponseWriter, r *http.Request) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("ETag", `"1"`)
		if spoil != nil && spoil(w, r) {
			return
		}
		http.ServeContent(w, r, "", time.Now(), strings.NewReader(content))
	}
}

func readRange(t *testing.T, s store.Store, off, n int64) (string, error) {
	t.Helper()
	r, err := s.Get(t.Context(), "a", off, n)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	return string(b), errors.Join(err, r.Close())
}

func TestARangeIsOneRequestAndItsAnswerIsChecked(t *testing.T) {
	server := script(t, false, object("0123456789", nil))
	s := open(t, server.options())
	for _, c := range []struct {
		off, n       int64
		want, header string
	}{{0, -1, "0123456789", ""}, {0, 10, "0123456789", "bytes=0-9"}, {0, 1, "0", "bytes=0-0"}, {3, 4, "3456", "bytes=3-6"}, {7, -1, "789", "bytes=7-"}} {
		before := len(server.requests)
		got, err := readRange(t, s, c.off, c.n)
		if err != nil || got != c.want || len(server.requests) != before+1 || server.requests[before].Header.Get("Range") != c.header {
			t.Errorf("%d+%d: %q, %v, %q", c.off, c.n, got, err, server.requests[before].Header.Get("Range"))
		}
	}
	if _, err := readRange(t, s, 8, 3); !errors.Is(err, store.ErrRange) {
		t.Errorf("a range that the service cut short: %v", err)
	}

	ignoring := script(t, false, object("0123456789", func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	}))
	if got, err := readRange(t, open(t, ignoring.options()), 3, 4); err == nil || !strings.Contains(err.Error(), "ranges") {
		t.Errorf("a service that ignores ranges: %q, %v", got, err)
	}
}

func TestABrokenBodyIsAnErrorWorthARetry(t *testing.T) {
	server := script(t, false, object("0123456789", func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "01234")
		return true // the server closes the connection
	}))
	got, err := readRange(t, open(t, server.options()), 0, -1)
	if got != "01234" || !errors.Is(err, store.ErrTransient) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAStalledServiceIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	hang := func(http.ResponseWriter, *http.Request) bool { <-release; return true }
	server := script(t, false, object("0123456789", hang))
	o := server.options()
	o.Stall = 50 * time.Millisecond
	s := open(t, o)
	_, get := readRange(t, s, 0, -1)
	_, stat := s.Stat(t.Context(), "a")
	var list error
	for _, list = range s.List(t.Context(), "") {
	}
	for op, err := range map[string]error{"get": get, "stat": stat, "list": list, "put": putSome(t.Context(), s), "delete": s.Delete(t.Context(), []string{"a", "b"})} {
		if !errors.Is(err, store.ErrUnreachable) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", op, err)
		}
	}
	// Half a body, then silence.
	server = script(t, false, object("", func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "01234")
		w.(http.Flusher).Flush()
		return hang(w, r)
	}))
	o = server.options()
	o.Stall = 50 * time.Millisecond
	if got, err := readRange(t, open(t, o), 0, -1); got != "01234" || !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestASlowReaderIsNoStall(t *testing.T) {
	server := script(t, false, object(strings.Repeat("x", 1<<20), nil))
	o := server.options()
	o.Stall = 50 * time.Millisecond
	r, err := open(t, o).Get(t.Context(), "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	time.Sleep(150 * time.Millisecond)
	if b, err := io.ReadAll(r); err != nil || len(b) != 1<<20 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestAListOutOfOrderOrCutShortIsNotBelieved(t *testing.T) {
	page := func(keys ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			var b strings.Builder
			for _, k := range keys {
				fmt.Fprintf(&b, "<Contents><Key>pre/%s</Key><Size>1</Size><LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents>", k)
			}
			fmt.Fprintf(w, `<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>%s</ListBucketResult>`, b.String())
		}
	}
	list := func(answer http.HandlerFunc) (keys string, err error) {
		server := script(t, false, answer)
		for info, err := range open(t, server.options()).List(t.Context(), "") {
			if err != nil {
				return keys, err
			}
			keys += info.Key + " "
		}
		return keys, nil
	}
	if keys, err := list(page("a", "b/", "c", "D", "d")); !errors.Is(err, store.ErrCorrupt) || keys != "a c " {
		t.Errorf("out of order: %q, %v", keys, err)
	}
	if keys, err := list(page("a", "b/", "c")); err != nil || keys != "a c " {
		t.Errorf("with the marker of a folder: %q, %v", keys, err)
	}
	if keys, err := list(page("a", "a")); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("twice the same: %q, %v", keys, err)
	}
	if _, err := list(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>`)
	}); err == nil {
		t.Error("a truncated page without continuation is the end")
	}
	if _, err := list(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `<ListBucketResult><Conte`) }); err == nil {
		t.Error("half a page is a page")
	}
}

func TestAnInterruptedPutReadsItsBodyNoMore(t *testing.T) {
	started := make(chan struct{})
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = r.Body.Read(make([]byte, 1))
		close(started)
		<-release
	}))
	defer server.Close()
	defer close(release)
	o := (&scripted{Server: server}).options()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	b := make([]byte, 64<<20)
	err := open(t, o).Put(ctx, "a", store.NewBody(b), store.PutOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	clear(b) // the race detector watches
}

func TestTheServerNeedsATrustedCertificate(t *testing.T) {
	server := script(t, true, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	o := server.options()
	o.Secure = true
	err := putSome(t.Context(), open(t, o))
	if !errors.Is(err, store.ErrInvalid) || errors.Is(err, store.ErrTransient) || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
		t.Errorf("unknown certificate: %v", err)
	}
	o.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if _, err := s3.Open(o); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("missing CA file: %v", err)
	}
	write := func(b []byte) {
		if err := os.WriteFile(o.CAFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("no certificate"))
	if _, err := s3.Open(o); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("empty CA file: %v", err)
	}
	write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	if err := putSome(t.Context(), open(t, o)); err != nil {
		t.Errorf("trusted certificate: %v", err)
	}
	plain := script(t, false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	o = plain.options()
	o.Secure = true
	if err := putSome(t.Context(), open(t, o)); !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), "http://") {
		t.Errorf("https to a server without TLS: %v", err)
	}
}
