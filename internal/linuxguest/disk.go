package linuxguest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

// window is how many of the newest files of a disk are never removed; init.sh
// knows it as remove_after.
const window = 20

// MakeDisk makes a qcow2 image of that size with an empty ext4 file system. The
// guest's files take up to 16 MiB of it.
func MakeDisk(t testing.TB, path string, bytes int64) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, bytes); err != nil {
		t.Fatal(err)
	}
	// What is left to the kernel's leisure would be written when a test expects an idle guest.
	testtool.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", raw)
	testtool.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
}

// Contents are what CheckDisk found.
type Contents struct {
	Files  int   // that have a record
	Bytes  int64 // of these files
	Newest int   // the highest number of a record, 0 for none
}

// CheckDisk judges a raw copy of a guest's disk, and fails the test when it is not
// what the disk held at one instant. With expectClean the guest was frozen or off at
// that instant: the journal may hold nothing to replay. Otherwise it is replayed
// first, on a copy, and nothing else may need repair. The copy that was given is
// not changed.
func CheckDisk(t testing.TB, raw string, expectClean bool) Contents {
	t.Helper()
	if expectClean {
		if needsReplay(t, raw) {
			t.Errorf("%s: the journal must be replayed", raw)
			return Contents{}
		}
	} else {
		raw = replayed(t, raw)
	}
	if out, code := testtool.Try(t, "e2fsck", "-f", "-n", raw); code != 0 {
		t.Errorf("%s: e2fsck -fn finds damage:\n%s", raw, out)
		return Contents{}
	}
	return checkFiles(t, raw)
}

// needsReplay looks for the flag that a mounted file system has.
func needsReplay(t testing.TB, raw string) bool {
	t.Helper()
	for line := range strings.Lines(testtool.Run(t, "dumpe2fs", "-h", raw)) {
		if features, ok := strings.CutPrefix(line, "Filesystem features:"); ok {
			return strings.Contains(features, "needs_recovery")
		}
	}
	t.Fatalf("%s: dumpe2fs names no features", raw)
	return false
}

// replayed returns a copy with the journal replayed. Nothing else may be repaired:
// "-p" without "-f" replays, takes away files that were removed while open, and
// looks no further.
func replayed(t testing.TB, raw string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(raw))
	testtool.Run(t, "cp", "--reflink=auto", "--sparse=always", raw, to)
	if out, code := testtool.Try(t, "e2fsck", "-p", to); code > 1 { // 1: something was done
		t.Fatalf("%s: e2fsck -p: exit %d\n%s", raw, code, out)
	}
	return to
}

// checkFiles compares all files with their records.
func checkFiles(t testing.TB, raw string) Contents {
	t.Helper()
	to := t.TempDir()
	for line := range strings.Lines(testtool.Run(t, "debugfs", "-R", "rdump /files "+to, raw)) {
		if !strings.HasPrefix(line, "debugfs ") && !strings.Contains(line, "while changing ownership") { // that takes root
			t.Errorf("%s: debugfs: %s", raw, line)
		}
	}
	defer os.RemoveAll(to)
	records, err := filepath.Glob(filepath.Join(to, "files", "*.sum"))
	if err != nil {
		t.Fatal(err)
	}
	var found Contents
	numbers := map[int]bool{}
	for _, path := range records {
		r, err := checkFile(path)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
		}
		found.Files++
		found.Bytes += r.bytes
		found.Newest = max(found.Newest, r.number)
		numbers[r.number] = true
	}
	for n := max(1, found.Newest-window+1); n < found.Newest; n++ {
		if !numbers[n] {
			t.Errorf("%s: file number %d is missing, %d is there", raw, n, found.Newest)
		}
	}
	return found
}

// checkFile reads a record and compares it with its file.
func checkFile(path string) (record, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return record{}, err
	}
	r, err := parseRecord(string(text))
	if err != nil {
		return r, fmt.Errorf("record %s: %w", filepath.Base(path), err)
	}
	path = strings.TrimSuffix(path, ".sum")
	contents, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("file number %d: %w", r.number, err)
	}
	if int64(len(contents)) != r.bytes || fmt.Sprintf("%x", sha256.Sum256(contents)) != r.sum {
		return r, fmt.Errorf("file number %d (%s, %d bytes) does not fit its record of %d bytes", r.number, filepath.Base(path), len(contents), r.bytes)
	}
	return r, nil
}

// record is what the guest writes beside a file.
type record struct {
	number int
	bytes  int64
	sum    string // SHA-256, 64 hex digits
}

func parseRecord(text string) (record, error) {
	fields := strings.Split(strings.TrimSuffix(text, "\n"), " ")
	if len(fields) != 3 || len(fields[2]) != 2*sha256.Size {
		return record{}, fmt.Errorf("%q is not a number, a length and a checksum", text)
	}
	number, err := strconv.Atoi(fields[0])
	if err != nil || number < 1 {
		return record{}, fmt.Errorf("%q is no number of a file", fields[0])
	}
	bytes, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || bytes < 1 {
		return record{}, fmt.Errorf("%q is no length", fields[1])
	}
	return record{number, bytes, fields[2]}, nil
}
