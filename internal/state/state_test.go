package state

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/ident"
)

func environment(root bool, home string, set map[string]string) Environment {
	return Environment{Get: func(name string) string { return set[name] }, Root: root, Home: home}
}

func TestTheStateDirectoryIsChosenInTheDocumentedOrder(t *testing.T) {
	all := map[string]string{"QBACKUP_STATE_DIR": "/q", "STATE_DIRECTORY": "/s1:/s2", "XDG_STATE_HOME": "/x", "CACHE_DIRECTORY": "/c", "XDG_CACHE_HOME": "/xc"}
	without := func(names ...string) map[string]string {
		m := map[string]string{}
		for k, v := range all {
			m[k] = v
		}
		for _, n := range names {
			delete(m, n)
		}
		return m
	}
	for _, c := range []struct {
		flag         string
		env          Environment
		state, cache string
	}{
		{"/flag", environment(true, "/root", all), "/flag", "/c"},
		{"/flag", environment(true, "/root", without("CACHE_DIRECTORY")), "/flag", "/flag/cache"},
		{"", environment(true, "/root", without("CACHE_DIRECTORY")), "/q", "/q/cache"},
		{"", environment(true, "/root", without("QBACKUP_STATE_DIR")), "/s1", "/c"},
		{"", environment(true, "/root", without("QBACKUP_STATE_DIR", "STATE_DIRECTORY", "CACHE_DIRECTORY")), "/var/lib/qbackup", "/var/cache/qbackup"},
		{"", environment(false, "/home/u", without("QBACKUP_STATE_DIR", "STATE_DIRECTORY", "CACHE_DIRECTORY")), "/x/qbackup", "/xc/qbackup"},
		{"", environment(false, "/home/u", nil), "/home/u/.local/state/qbackup", "/home/u/.cache/qbackup"},
		{"", environment(false, "/home/u", map[string]string{"XDG_STATE_HOME": "relative", "XDG_CACHE_HOME": "relative"}), "/home/u/.local/state/qbackup", "/home/u/.cache/qbackup"},
	} {
		state, err := Dir(c.flag, c.env)
		if err != nil || state != c.state {
			t.Errorf("flag %q: state is %q, %v; want %q", c.flag, state, err, c.state)
		}
		cache, err := CacheDir(c.flag, c.env)
		if err != nil || cache != c.cache {
			t.Errorf("flag %q: cache is %q, %v; want %q", c.flag, cache, err, c.cache)
		}
	}
	if _, err := Dir("", environment(false, "", nil)); err == nil || !strings.Contains(err.Error(), "QBACKUP_STATE_DIR") {
		t.Errorf("without a home: %v; want an error that names QBACKUP_STATE_DIR", err)
	}
	if dir, err := Dir("relative", environment(true, "", nil)); err != nil || !filepath.IsAbs(dir) {
		t.Errorf("a relative flag gave %q, %v; want an absolute path", dir, err)
	}
	if HostEnvironment().Get == nil {
		t.Error("the host's environment cannot be read")
	}
}

type fixture struct {
	dir     string
	state   *State
	repo    *Repository
	machine *Machine
	reports []error
}

func open(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{dir: filepath.Join(t.TempDir(), "deep", "state")}
	s, err := Open(f.dir, Options{Report: func(err error) { f.reports = append(f.reports, err) }})
	if err != nil {
		t.Fatal(err)
	}
	f.state, f.repo = s, s.Repository([16]byte{1, 2})
	f.machine = f.repo.Machine("web-1")
	return f
}

func run(n byte) Run {
	return Run{
		Run: ident.RunID{n}, Host: "h", BootID: "b", Nonce: "n", Time: time.Unix(int64(n), 0).UTC(),
		Disks: []RunDisk{{Name: "vda", Path: "/i", Mode: "full"}},
	}
}

func TestAJournalRemembersTheLastRunAndTheLastCommittedOne(t *testing.T) {
	f := open(t)
	if _, found := f.machine.Journal(); found {
		t.Fatal("a journal was found before one was written")
	}
	id := ident.MachineID{9}
	for _, step := range []error{
		f.machine.Begin(id, run(1)),
		f.machine.End(ident.RunID{1}, OutcomeCommitted, time.Unix(10, 0)),
		f.machine.Begin(id, run(2)),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	want := run(2)
	j, found := f.machine.Journal()
	if !found || !reflect.DeepEqual(j, Journal{Machine: "web-1", MachineID: id, Last: &want, Committed: ident.RunID{1}}) {
		t.Fatalf("journal is %+v (last %+v)", j, j.Last)
	}
	if err := f.machine.End(ident.RunID{1}, OutcomeReset, time.Unix(11, 0)); err != nil {
		t.Fatal(err)
	}
	if j, _ = f.machine.Journal(); j.Reset != (ident.RunID{1}) || j.Committed != (ident.RunID{1}) || j.Last.Outcome != OutcomeOpen {
		t.Fatalf("after a reset the journal is %+v (last %+v)", j, j.Last)
	}
	if err := f.machine.End(ident.RunID{2}, OutcomeFailed, time.Unix(11, 0)); err != nil {
		t.Fatal(err)
	}
	j, _ = f.machine.Journal()
	if j.Last.Outcome != OutcomeFailed || j.Committed != (ident.RunID{1}) || !j.Last.Ended.Equal(time.Unix(11, 0)) {
		t.Fatalf("after a failed run the journal is %+v (last %+v)", j, j.Last)
	}
	if len(f.reports) != 0 {
		t.Fatalf("reports: %v", f.reports)
	}
}

func TestARunThatIsNotTheLastStillCountsAsCommitted(t *testing.T) {
	f := open(t)
	if err := f.machine.Begin(ident.MachineID{9}, run(2)); err != nil {
		t.Fatal(err)
	}
	if err := f.machine.End(ident.RunID{1}, OutcomeCommitted, time.Unix(10, 0)); err != nil {
		t.Fatal(err)
	}
	j, _ := f.machine.Journal()
	if j.Committed != (ident.RunID{1}) || j.Last.Outcome != OutcomeOpen {
		t.Fatalf("journal is %+v (last %+v)", j, j.Last)
	}
}

func TestAnotherMachineOfTheSameNameInheritsNothing(t *testing.T) {
	f := open(t)
	if err := f.machine.Begin(ident.MachineID{9}, run(1)); err != nil {
		t.Fatal(err)
	}
	if err := f.machine.End(ident.RunID{1}, OutcomeCommitted, time.Unix(10, 0)); err != nil {
		t.Fatal(err)
	}
	if err := f.machine.Begin(ident.MachineID{8}, run(2)); err != nil {
		t.Fatal(err)
	}
	if j, _ := f.machine.Journal(); !j.Committed.IsZero() || j.MachineID != (ident.MachineID{8}) {
		t.Fatalf("journal is %+v", j)
	}
}

func TestEndWithoutAJournalIsNoError(t *testing.T) {
	f := open(t)
	if err := f.machine.End(ident.RunID{1}, OutcomeCommitted, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
}

func TestFilesAndFoldersAreForTheOwnerOnlyAndNothingTemporaryStays(t *testing.T) {
	f := open(t)
	if err := f.machine.Begin(ident.MachineID{9}, run(1)); err != nil {
		t.Fatal(err)
	}
	if err := f.repo.SaveProbe(Probe{}); err != nil {
		t.Fatal(err)
	}
	unlock, err := f.machine.Lock(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	files := 0
	err = filepath.Walk(f.dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		want := os.FileMode(fileMode)
		if info.IsDir() {
			want = folderMode
			if path == f.dir && os.Geteuid() == 0 {
				want = passedMode // QEMU, which is another user, goes through it to its scratch files
			}
		} else {
			files++
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil || files != 3 {
		t.Fatalf("%d files, %v; want journal, lock and probe verdict", files, err)
	}
}

func TestADamagedFileIsReportedAndCountsAsAbsent(t *testing.T) {
	sound := func(t *testing.T) (*fixture, string, []byte) {
		f := open(t)
		if err := f.machine.Begin(ident.MachineID{9}, run(1)); err != nil {
			t.Fatal(err)
		}
		path := f.machine.base + journalSuffix
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return f, path, raw
	}
	for name, damage := range map[string]func([]byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"cut short":       func(b []byte) []byte { return b[:len(b)/2] },
		"zeros":           func(b []byte) []byte { return make([]byte, len(b)) },
		"another version": func(b []byte) []byte { return []byte(strings.Replace(string(b), `"version":1`, `"version":2`, 1)) },
		"another shape":   func([]byte) []byte { return []byte(`{"version":1,"value":[]}`) },
		"another machine": func(b []byte) []byte { return []byte(strings.Replace(string(b), "web-1", "web-2", 1)) },
		"a malformed run": func(b []byte) []byte { return []byte(strings.Replace(string(b), `"run":"`, `"run":"!`, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			f, path, raw := sound(t)
			if err := os.WriteFile(path, damage(raw), fileMode); err != nil {
				t.Fatal(err)
			}
			if j, found := f.machine.Journal(); found {
				t.Fatalf("found %+v", j)
			}
			if len(f.reports) != 1 || !errors.Is(f.reports[0], ErrDamaged) || !strings.Contains(f.reports[0].Error(), path) {
				t.Fatalf("reports: %v; want one that names %s", f.reports, path)
			}
			if err := f.machine.Begin(ident.MachineID{9}, run(2)); err != nil {
				t.Fatalf("a damaged file stands in the way: %v", err)
			}
			if _, found := f.machine.Journal(); !found {
				t.Fatal("the new journal was not found")
			}
		})
	}
}

func TestALockedMachineIsBusyAndTheHolderIsNamed(t *testing.T) {
	f := open(t)
	since := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)
	unlock, err := f.machine.Lock(since)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.machine.Lock(time.Now())
	var busy *BusyError
	if !errors.Is(err, ErrBusy) || !errors.As(err, &busy) {
		t.Fatalf("second lock: %v", err)
	}
	host, _ := os.Hostname()
	if busy.Holder.PID != os.Getpid() || busy.Holder.Host != host || !busy.Holder.Since.Equal(since) {
		t.Fatalf("holder is %+v", busy.Holder)
	}
	other, err := f.repo.Machine("web-2").Lock(time.Now())
	if err != nil {
		t.Fatalf("another machine: %v", err)
	}
	other()
	elsewhere, err := f.state.Repository([16]byte{3}).Machine("web-1").Lock(time.Now())
	if err != nil {
		t.Fatalf("another repository: %v", err)
	}
	elsewhere()
	unlock()
	unlock()
	again, err := f.machine.Lock(time.Now())
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	again()
}

func TestAHolderThatWroteNothingIsStillBusy(t *testing.T) {
	f := open(t)
	unlock, err := f.machine.Lock(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := os.Truncate(f.machine.base+lockSuffix, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.machine.Lock(time.Now()); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), lockSuffix) {
		t.Fatalf("got %v", err)
	}
}

func TestALockEndsAlthoughAChildStillHasACopyOfItsFile(t *testing.T) {
	f := open(t)
	unlock, err := f.machine.Lock(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// What a child has between fork and exec.
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	found := false
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if target, lerr := os.Readlink("/proc/self/fd/" + name.Name()); err != nil || lerr != nil || target != f.machine.base+lockSuffix {
			continue
		}
		if fd, err = unix.Dup(fd); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		found = true
		break
	}
	if !found {
		t.Fatal("the lock file is not open")
	}
	unlock()
	again, err := f.machine.Lock(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// lockedDir makes this test binary take a lock and wait to be killed.
const lockedDir = "QBACKUP_TEST_LOCK_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(lockedDir); dir != "" {
		s, err := Open(dir, Options{})
		if err != nil {
			os.Exit(2)
		}
		if _, err := s.Repository([16]byte{1, 2}).Machine("web-1").Lock(time.Now()); err != nil {
			os.Exit(3)
		}
		os.Stdout.WriteString("locked\n")
		time.Sleep(time.Minute)
		os.Exit(4)
	}
	os.Exit(m.Run())
}

func TestALockEndsWithAKilledProcess(t *testing.T) {
	f := open(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), lockedDir+"="+f.dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 7)
	if _, err := out.Read(line); err != nil {
		t.Fatal(err)
	}
	_, err = f.machine.Lock(time.Now())
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Holder.PID != child.Process.Pid {
		t.Fatalf("while the child lives: %v; want process %d", err, child.Process.Pid)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	unlock, err := f.machine.Lock(time.Now())
	if err != nil {
		t.Fatalf("after the child was killed: %v", err)
	}
	unlock()
}

func TestAProbeVerdictIsKeptPerRepository(t *testing.T) {
	f := open(t)
	if _, found := f.repo.Probe(); found {
		t.Fatal("found a verdict before one was saved")
	}
	p := Probe{Time: time.Unix(5, 0).UTC(), CreateOnly: true, Detail: json.RawMessage(`{"a":1}`)}
	if err := f.repo.SaveProbe(p); err != nil {
		t.Fatal(err)
	}
	if got, found := f.repo.Probe(); !found || !reflect.DeepEqual(got, p) {
		t.Fatalf("got %+v, %v", got, found)
	}
	if _, found := f.state.Repository([16]byte{3}).Probe(); found {
		t.Fatal("another repository has the verdict too")
	}
}

func TestAStateDirectoryThatCannotBeMadeSaysWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "state"), Options{}); err == nil || !strings.Contains(err.Error(), "--state-dir") {
		t.Fatalf("got %v", err)
	}
}

func TestTheBootIDIsStableWithinABoot(t *testing.T) {
	if id := BootID(); id == "" || id != BootID() {
		t.Fatalf("boot id %q, then %q", id, BootID())
	}
}
