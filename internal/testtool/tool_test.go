package testtool_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// recorder is a test that only notes how it ended.
type recorder struct {
	testing.TB
	skipped, failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Skipf(string, ...any)  { r.skipped = true; runtime.Goexit() }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; runtime.Goexit() }

// record runs f as a test of its own, to the end or to Skipf or Fatalf.
func record(t *testing.T, f func(testing.TB)) *recorder {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestAMissingToolSkipsOrFailsAsTheEnvironmentSays(t *testing.T) {
	missing := func(t testing.TB) { testtool.Need(t, "qbackup-no-such-tool") }
	t.Setenv("QBACKUP_REQUIRE_TOOLS", "")
	if r := record(t, missing); !r.skipped || r.failed {
		t.Errorf("without the variable: %+v", r)
	}
	t.Setenv("QBACKUP_REQUIRE_TOOLS", "1")
	if r := record(t, missing); r.skipped || !r.failed {
		t.Errorf("with the variable: %+v", r)
	}
}

func TestAToolIsFoundInPath(t *testing.T) {
	folder := t.TempDir()
	tool := filepath.Join(folder, "sometool")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho \"$1\"; echo err >&2; exit \"$2\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", folder+":"+os.Getenv("PATH"))
	if got := testtool.Need(t, "sometool"); got != tool {
		t.Errorf("found %q, want %q", got, tool)
	}
	if out := testtool.Run(t, "sometool", "word", "0"); out != "word\nerr\n" {
		t.Errorf("Run returned %q", out)
	}
	if out, code := testtool.Try(t, "sometool", "word", "7"); out != "word\nerr\n" || code != 7 {
		t.Errorf("Try returned %q, %d", out, code)
	}
	r := record(t, func(t testing.TB) { testtool.Run(t, "sometool", "word", "7") })
	if !r.failed {
		t.Error("Run took exit code 7 for success")
	}
}

func TestCountFollowsTheEnvironment(t *testing.T) {
	t.Setenv("QBACKUP_LONG", "")
	if got := testtool.Count(3, 9); got != 3 {
		t.Errorf("short count %d", got)
	}
	t.Setenv("QBACKUP_LONG", "1")
	if got := testtool.Count(3, 9); got != 9 {
		t.Errorf("long count %d", got)
	}
}
