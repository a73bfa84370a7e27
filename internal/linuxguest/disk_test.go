package linuxguest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// recorder is a test that only notes what was said against it.
type recorder struct {
	testing.TB
	said    []string
	skipped bool
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
func (r *recorder) Skipf(string, ...any)              { r.skipped = true; runtime.Goexit() }

// recordTest runs f as a test of its own, to the end or to Fatalf or Skipf.
func recordTest(t *testing.T, f func(testing.TB)) *recorder {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

// plantDisk makes a raw file system with files as the guest writes them, numbers 1
// to 30, after change was at their folder.
func plantDisk(t *testing.T, change func(folder string)) string {
	t.Helper()
	folder := t.TempDir()
	files := filepath.Join(folder, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{7})
	for n := 1; n <= 30; n++ {
		contents := make([]byte, 1000*n)
		random.Read(contents)
		write(t, filepath.Join(files, fmt.Sprint(n)), contents)
		write(t, filepath.Join(files, fmt.Sprint(n)+".sum"), fmt.Appendf(nil, "%d %d %x\n", n, len(contents), sha256.Sum256(contents)))
	}
	write(t, filepath.Join(files, "31.new"), []byte("31 5")) // not finished
	if change != nil {
		change(files)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	write(t, raw, nil)
	if err := os.Truncate(raw, 16<<20); err != nil {
		t.Fatal(err)
	}
	testtool.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", folder, raw)
	return raw
}

func write(t *testing.T, path string, contents []byte) {
	t.Helper()
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAGoodDiskIsTakenAndLeftAsItIs(t *testing.T) {
	raw := plantDisk(t, nil)
	want := Contents{Files: 30, Bytes: 465000, Newest: 30}
	if c := CheckDisk(t, raw, true); c != want {
		t.Errorf("clean: %+v, want %+v", c, want)
	}
	if c := CheckDisk(t, raw, false); c != want {
		t.Errorf("crashed: %+v, want %+v", c, want)
	}
	testtool.Run(t, "debugfs", "-w", "-R", "feature needs_recovery", raw)
	before := read(t, raw)
	if c := CheckDisk(t, raw, false); c != want {
		t.Errorf("with a journal to replay: %+v, want %+v", c, want)
	}
	if !bytes.Equal(before, read(t, raw)) {
		t.Error("the copy that was given was changed")
	}
}

func TestABadDiskIsFoundOut(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, files string) // of the files before the disk is made
		damage func(t *testing.T, raw string)
		want   string
	}{
		{"a byte differs", nil, func(t *testing.T, raw string) {
			fields := strings.Fields(testtool.Run(t, "debugfs", "-R", "bmap /files/25 3", raw))
			n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(raw, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1)
			if _, err := f.ReadAt(b, n*4096+17); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if _, err := f.WriteAt(b, n*4096+17); err != nil {
				t.Fatal(err)
			}
		}, "file number 25 (25, 25000 bytes) does not fit"},
		{"a file is longer", func(t *testing.T, files string) {
			write(t, filepath.Join(files, "9"), make([]byte, 9001))
		}, nil, "file number 9 (9, 9001 bytes) does not fit"},
		{"a file is gone", func(t *testing.T, files string) {
			if err := os.Remove(filepath.Join(files, "9")); err != nil {
				t.Fatal(err)
			}
		}, nil, "file number 9: "},
		{"a file and its record are gone", func(t *testing.T, files string) {
			for _, name := range []string{"11", "11.sum"} {
				if err := os.Remove(filepath.Join(files, name)); err != nil {
					t.Fatal(err)
				}
			}
		}, nil, "file number 11 is missing, 30 is there"},
		{"a record is empty", func(t *testing.T, files string) { write(t, filepath.Join(files, "9.sum"), nil) }, nil, "record 9.sum"},
		{"there are no files", func(t *testing.T, files string) {
			if err := os.RemoveAll(files); err != nil {
				t.Fatal(err)
			}
		}, nil, "debugfs"},
		{"an inode is cleared", nil, func(t *testing.T, raw string) {
			testtool.Run(t, "debugfs", "-w", "-R", "clri /files/31.new", raw)
		}, "e2fsck -fn finds damage"},
		{"a superblock is cleared", nil, func(t *testing.T, raw string) {
			f, err := os.OpenFile(raw, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, 1024), 1024); err != nil {
				t.Fatal(err)
			}
		}, "exit "},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := plantDisk(t, func(files string) {
				if c.change != nil {
					c.change(t, files)
				}
			})
			if c.damage != nil {
				c.damage(t, raw)
			}
			for _, clean := range []bool{true, false} {
				r := recordTest(t, func(t testing.TB) { CheckDisk(t, raw, clean) })
				if !strings.Contains(strings.Join(r.said, "\n"), c.want) {
					t.Errorf("clean %v: it says %q, not %q", clean, r.said, c.want)
				}
			}
		})
	}
}

func TestAJournalToReplayIsNotClean(t *testing.T) {
	raw := plantDisk(t, nil)
	testtool.Run(t, "debugfs", "-w", "-R", "feature needs_recovery", raw)
	r := recordTest(t, func(t testing.TB) { CheckDisk(t, raw, true) })
	if len(r.said) != 1 || !strings.Contains(r.said[0], "the journal must be replayed") {
		t.Errorf("it says %q", r.said)
	}
}

func FuzzParseRecord(f *testing.F) {
	sum := strings.Repeat("0a", 32)
	f.Add("17 1000 " + sum + "\n")
	for _, bad := range []string{"", "\n", "17 1000\n", "0 5 " + sum, "x 5 " + sum, "1 0 " + sum, "1 -5 " + sum, "1 5 abc", "1  5 " + sum, "1 5 " + sum + " 6"} {
		if r, err := parseRecord(bad); err == nil {
			f.Errorf("%q was taken for %+v", bad, r)
		}
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRecord(text)
		if err != nil {
			return
		}
		again, err := parseRecord(fmt.Sprintf("%d %d %s\n", r.number, r.bytes, r.sum))
		if err != nil || again != r || r.number < 1 || r.bytes < 1 || len(r.sum) != 64 {
			t.Errorf("%q: %+v, then %+v, %v", text, r, again, err)
		}
	})
}
