package virt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/source"
)

// script makes a program that takes the place of virsh.
func script(t *testing.T, text string) virsh {
	t.Helper()
	path := filepath.Join(t.TempDir(), "virsh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return virsh{program: path, uri: "test:///"}
}

func TestCommandsGetTheirFilesAndTheirWords(t *testing.T) {
	v := script(t, `echo "$1 $2 $3 $4 $LC_ALL"; cat "$5" "$6"`)
	out, err := v.do(t.Context(), []string{"backup-begin", fileArg(0), fileArg(1)}, "<a/>", "<b/>")
	if err != nil || out != "--quiet --connect test:/// backup-begin C\n<a/><b/>" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestAFailureIsInLibvirtsWords(t *testing.T) {
	v := script(t, `echo "error: Failed to x" >&2; echo "error: internal error: y" >&2; echo >&2; exit 1`)
	_, err := v.do(t.Context(), []string{"suspend"})
	if !says(err, "internal error: y") || err.Error() != "virsh suspend: Failed to x: internal error: y" {
		t.Errorf("%v", err)
	}
	v = script(t, `kill -9 $$`)
	if _, err := v.do(t.Context(), []string{"suspend"}); !says(err, "killed") {
		t.Errorf("%v", err)
	}
}

func TestACommandEndsWithTheRun(t *testing.T) {
	v := script(t, `exec sleep 100`)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	started := time.Now()
	if _, err := v.do(ctx, []string{"list"}); !errors.Is(err, context.DeadlineExceeded) || time.Since(started) > 20*time.Second {
		t.Errorf("%v after %s", err, time.Since(started))
	}
}

func TestWithoutVirshTheErrorSaysWhatIsMissing(t *testing.T) {
	v := virsh{program: "qbackup-no-such-program", uri: "test:///"}
	if _, err := v.do(t.Context(), []string{"list"}); !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "libvirt-clients") {
		t.Errorf("%v", err)
	}
}

func TestAnAnswerIsBounded(t *testing.T) {
	v := script(t, `head -c 70000000 /dev/zero`)
	if _, err := v.do(t.Context(), []string{"dumpxml"}); !says(err, "bytes of answer") {
		t.Errorf("%v", err)
	}
}

func TestSeveralCommandsAreOneProcessUnlessSomethingFails(t *testing.T) {
	v := script(t, `echo "$4" >>"$0.log"
case $4 in
"'a' 'b c' ; "*) printf 'oneqbackup: next answertwoqbackup: next answer' ;;
"'bad' "*) echo "error: something" >&2 ;;
a) echo one ;;
*) echo "error: $4 failed" >&2; exit 1 ;;
esac`)
	answers, err := v.all(t.Context(), []string{"a", "b c"}, []string{"d"})
	if err != nil || !slices.Equal(answers, []string{"one", "two"}) {
		t.Errorf("%q, %v", answers, err)
	}
	if _, err := v.all(t.Context(), []string{"bad"}, []string{"a"}); err == nil || err.Error() != "virsh bad: bad failed" {
		t.Errorf("%v", err)
	}
	if _, err := v.all(t.Context(), []string{"a", "it's"}, []string{"d"}); err == nil || err.Error() != "virsh d: d failed" {
		t.Errorf("%v", err)
	}
	log, err := os.ReadFile(v.program + ".log")
	if err != nil || strings.Count(string(log), "\n") != 5 {
		t.Errorf("%s, %v", log, err)
	}
}

func TestAnOldLibvirtIsRefused(t *testing.T) {
	uuid := "1b00a07e-7827-4b0c-a714-45ab3b98f5a6"
	path := filepath.Join(t.TempDir(), "definition")
	if err := os.WriteFile(path, []byte(definition), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, backup := range []string{"<backup supported='no'/>", ""} {
		v := script(t, `case $4 in
list) echo "`+uuid+` Web 01" ;;
dumpxml) cat `+path+` ;;
domstate) echo "running (booted)" ;;
qemu-monitor-command) echo '{"error":{"desc":"no such argument"}}' ;;
vol-path) echo "error: Storage volume not found" >&2; exit 1 ;;
domcapabilities) echo "<domainCapabilities><features>`+backup+`</features></domainCapabilities>" ;;
*) exit 9 ;;
esac`)
		_, err := New(Options{Domain: "Web 01", Virsh: v.program}).Inspect(t.Context())
		if !errors.Is(err, ErrTooOld) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "7.6") {
			t.Errorf("%q: %v", backup, err)
		}
	}
}
