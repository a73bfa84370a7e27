package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/qbackup/qbackup/internal/testtool"
)

// Server is a real S3 server on the loopback interface, with one bucket: versitygw
// on a temporary folder. Keys are random words of each server.
type Server struct {
	Endpoint  string // http://127.0.0.1:PORT
	Host      string // 127.0.0.1:PORT
	Bucket    string
	AccessKey string
	SecretKey string
	Region    string
	Folder    string // where the server keeps the bucket's objects as files

	binary  string
	args    []string
	process *exec.Cmd
	log     string
}

// startTimeout is far above the tenth of a second that a start takes, for machines
// under load.
const startTimeout = 30 * time.Second

// S3 starts a server and stops it when the test ends. Without the program
// versitygw the test is skipped, as testtool.Need says. Options are those of its
// posix command; "--nometa" makes it a server that ignores conditions.
func S3(t testing.TB, options ...string) *Server {
	t.Helper()
	binary := testtool.Need(t, "versitygw")
	root := t.TempDir()
	for _, folder := range []string{"objects", "users"} {
		if err := os.Mkdir(filepath.Join(root, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := &Server{Bucket: "backups", AccessKey: "operator", SecretKey: "operator-secret", Region: "us-east-1", binary: binary}
	s.Folder = filepath.Join(root, "objects", s.Bucket)
	s.log = filepath.Join(root, "log")
	s.Host = freeAddress(t)
	s.Endpoint = "http://" + s.Host
	s.args = []string{"--port", s.Host, "--region", s.Region, "--iam-dir", filepath.Join(root, "users"), "--iam-cache-disable",
		"--quiet", "--keep-alive", "--health", "/health", "posix"}
	s.args = append(append(s.args, options...), filepath.Join(root, "objects"))
	t.Cleanup(s.Stop)
	s.Start(t)
	if err := s.client(t).MakeBucket(t.Context(), s.Bucket, minio.MakeBucketOptions{Region: s.Region}); err != nil {
		t.Fatalf("make the bucket: %v", err)
	}
	return s
}

// freeAddress finds a port that nobody listens on.
func freeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Start starts the server again, after Stop, at the same address.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.process = exec.Command(s.binary, s.args...)
	s.process.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey,
		"ROOT_ACCESS_KEY_ID="+s.AccessKey, "ROOT_SECRET_ACCESS_KEY="+s.SecretKey)
	s.process.Stdout, s.process.Stderr = log, log
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(t.Context()); err != nil {
		text, _ := os.ReadFile(s.log)
		t.Fatalf("versitygw does not answer: %v\n%s", err, text)
	}
}

func (s *Server) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+"/health", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(req)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("health is %s", answer.Status)
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop kills the server. Stopping one that is stopped does nothing.
func (s *Server) Stop() {
	if s.process == nil || s.process.Process == nil {
		return
	}
	_ = s.process.Process.Kill() // it may have ended by itself
	_ = s.process.Wait()
	s.process = nil
}

// Environ returns the variables that let a program use the server: keys and
// region, no profile files, no metadata service.
func (s *Server) Environ() map[string]string {
	return map[string]string{
		"AWS_ACCESS_KEY_ID":           s.AccessKey,
		"AWS_SECRET_ACCESS_KEY":       s.SecretKey,
		"AWS_SESSION_TOKEN":           "",
		"AWS_REGION":                  s.Region,
		"AWS_PROFILE":                 "",
		"AWS_CONFIG_FILE":             os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"AWS_EC2_METADATA_DISABLED":   "true",
	}
}

// Location is the address of a repository below a prefix of the bucket, in the
// form that commands take.
func (s *Server) Location(prefix string) string {
	return strings.TrimSuffix("s3:"+s.Endpoint+"/"+s.Bucket+"/"+prefix, "/")
}

// Agent makes a user that may get, put and list in the bucket, and not delete,
// and returns a copy of s with that user's keys. Stop the original only.
func (s *Server) Agent(t testing.TB) *Server {
	t.Helper()
	return s.Users(t, "agent")["agent"]
}

// Users makes users with the rights of configs/s3/NAME.json, and returns a copy of s with each one's keys. It is called
// once for a server; stop the original only.
func (s *Server) Users(t testing.TB, names ...string) map[string]*Server {
	t.Helper()
	users := map[string]*Server{}
	var statements []map[string]any
	for _, name := range names {
		u := *s
		u.process = nil
		u.AccessKey, u.SecretKey = name, name+"-secret"
		cmd := exec.CommandContext(t.Context(), s.binary, "admin", "--access", s.AccessKey, "--secret", s.SecretKey, "--region", s.Region,
			"--endpoint-url", s.Endpoint, "create-user", "--access", u.AccessKey, "--secret", u.SecretKey, "--role", "user")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("create a user: %v\n%s", err, out)
		}
		users[name] = &u
		for _, statement := range s.policy(t, name) {
			statement["Principal"] = map[string]any{"AWS": []string{u.AccessKey}}
			delete(statement, "Sid")
			statements = append(statements, statement)
		}
	}
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": statements})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.client(t).SetBucketPolicy(t.Context(), s.Bucket, string(policy)); err != nil {
		t.Fatalf("set the policy: %v", err)
	}
	return users
}

// policy reads the statements of a policy for users.
func (s *Server) policy(t testing.TB, name string) []map[string]any {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(here), "../../../configs/s3", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var policy struct{ Statement []map[string]any }
	if err := json.Unmarshal([]byte(strings.NewReplacer("BUCKET", s.Bucket, "PREFIX/*", "*", "PREFIX", "*").Replace(string(text))), &policy); err != nil {
		t.Fatalf("%s.json: %v", name, err)
	}
	return policy.Statement
}

// client is the operator's, for what only an operator does.
func (s *Server) client(t testing.TB) *minio.Client {
	t.Helper()
	transport, err := minio.DefaultTransport(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := minio.New(s.Host, &minio.Options{
		Creds:  credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""),
		Region: s.Region, Transport: transport, BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
