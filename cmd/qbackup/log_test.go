package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/ident"
)

func TestTheJournalGetsPriorities(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stderr")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	say := func(p *program) string {
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		p.stderr = f
		p.note("a note")
		p.warn("a warning")
		p.reportError(errors.New("an error"), exitFailed)
		p.failure("web1", errors.New("a failure"))
		l := p.logger()
		at := time.Unix(0, 0)
		logBegin(l, "web1")
		logEnd(l, agent.Ending{Machine: "web1", Start: at, End: at.Add(2 * time.Second), Summary: agent.Summary{Point: ident.RunID{1}, Consistency: "crash", Disks: []agent.DiskSummary{{StoredBytes: 7}}}})
		logEnd(l, agent.Ending{Machine: "web1", Start: at, End: at, Err: errors.New("no route"), Class: "failed"})
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	want := `<5>qbackup: a note
<4>qbackup: warning: a warning
<3>qbackup: an error
<3>qbackup: machine web1: a failure
<6>msg="backup begins" machine=web1
<6>msg="backup ended" machine=web1 status=ok duration_seconds=2 point=04000000000000000000000000 consistency=crash dirty_bytes=0 read_bytes=0 zero_bytes=0 skipped_bytes=0 stored_bytes=7
<3>msg="backup ended" machine=web1 status=failed duration_seconds=0 class=failed error="no route"
`
	if got := say(&program{}); got != want {
		t.Errorf("%s", got)
	}
	t.Setenv("JOURNAL_STREAM", "1:2")
	if got := say(&program{}); strings.Contains(got, "<") || !strings.Contains(got, "level=ERROR msg=\"backup ended\"") {
		t.Errorf("%s", got)
	}
	if got := say(&program{json: true}); strings.Count(got, "\n") != 7 || strings.Contains(got, "qbackup: ") || !strings.Contains(got, `"msg":"backup ended","machine":"web1","status":"ok","duration_seconds":2,"point":"0400`) {
		t.Errorf("%s", got)
	}
}
