package scratch

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestImagesAreCountedAlsoWithoutTheirNames(t *testing.T) {
	s, err := Open(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.Image("a-*.qcow2", 1<<30, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image("b.qcow2", 1<<20, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image("b.qcow2", 1<<20, -1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
	empty := s.Used()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if empty == 0 || s.Used() < empty+1<<20 {
		t.Errorf("%d bytes when empty, %d afterwards", empty, s.Used())
	}
	s.Close()
	s.Close()
	(*Space)(nil).Close()
	if s.Used() != 0 {
		t.Errorf("%d bytes of nothing", s.Used())
	}
}

// giver tells a process of this test to give a file away.
const giver = "QBACKUP_TEST_GIVE"

func TestMain(m *testing.M) {
	if path := os.Getenv(giver); path != "" {
		if err := Give(path, nobody); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// nobody is the user, and the group of this user, on Debian.
const nobody = 65534

func TestAFileIsSharedThroughAGroupWhereItCannotBeGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	program := filepath.Join(t.TempDir(), "test")
	b, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(program, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for dir := program; dir != "/"; dir = filepath.Dir(dir) {
		if strings.HasPrefix(dir, os.TempDir()+"/") {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	const us = 12345
	for _, c := range []struct {
		groups []uint32
		folder bool
		mode   fs.FileMode // 0: it must fail
	}{{[]uint32{nobody}, false, 0o660}, {[]uint32{nobody}, true, 0o770}, {nil, false, 0}} {
		path := filepath.Join(filepath.Dir(program), "scratch")
		if c.folder {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, nil, 0o600)
		}
		if err = errors.Join(err, os.Chown(path, us, us)); err != nil {
			t.Fatal(err)
		}
		run := exec.Command(program)
		run.Env = []string{giver + "=" + path}
		run.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: us, Gid: us, Groups: c.groups}}
		out, err := run.CombinedOutput()
		info, statErr := os.Stat(path)
		if statErr != nil {
			t.Fatal(statErr)
		}
		owner := info.Sys().(*syscall.Stat_t)
		switch {
		case c.mode == 0 && (err == nil || !strings.Contains(string(out), "usermod --append --groups") && !strings.Contains(string(out), "no group is ours and its")):
			t.Errorf("nothing in common: %v, %s", err, out)
		case c.mode != 0 && (err != nil || owner.Gid != nobody || owner.Uid != us || info.Mode().Perm() != c.mode):
			t.Errorf("%+v: %v, %s, mode %s of %d:%d", c, err, out, info.Mode(), owner.Uid, owner.Gid)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := Give("/nowhere", os.Geteuid()); err != nil {
		t.Errorf("what is ours: %v", err)
	}
}
