package testtool

import (
	"errors"
	"go/build"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Need returns the path of a program. It looks in PATH, then in /usr/sbin,
// where distributions keep file system tools out of users' PATH, and in the
// bin folder of GOPATH, where "go install" puts them. A missing program skips
// the test, or fails it when QBACKUP_REQUIRE_TOOLS is 1.
func Need(t testing.TB, tool string) string {
	t.Helper()
	path, err := find(tool)
	if err == nil {
		return path
	}
	Lacking(t, tool+" is not installed")
	return ""
}

// Lacking skips the test, or fails it when QBACKUP_REQUIRE_TOOLS is 1.
func Lacking(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("QBACKUP_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s, and is needed (QBACKUP_REQUIRE_TOOLS=1)", what)
	}
	t.Skipf("%s", what)
}

func find(tool string) (string, error) {
	path, err := exec.LookPath(tool)
	if err == nil || strings.ContainsRune(tool, filepath.Separator) {
		return path, err
	}
	folders := []string{"/usr/sbin", "/sbin"}
	for _, root := range filepath.SplitList(build.Default.GOPATH) {
		folders = append(folders, filepath.Join(root, "bin"))
	}
	for _, folder := range folders {
		if path, err := exec.LookPath(filepath.Join(folder, tool)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// Run runs a program, found as by Need, and returns its combined output. The
// test fails, showing the output, when the program does not exit with 0.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, code := Try(t, name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit %d\n%s", name, strings.Join(args, " "), code, out)
	}
	return out
}

// Try runs a program, found as by Need, and returns its combined output and
// exit code; -1 stands for a program that a signal ended. The test fails only
// when the program cannot be started.
func Try(t testing.TB, name string, args ...string) (out string, exitCode int) {
	t.Helper()
	raw, err := exec.CommandContext(t.Context(), Need(t, name), args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	if exit != nil {
		return string(raw), exit.ExitCode()
	}
	return string(raw), 0
}

// Count returns how often a proof is repeated: short by default, long when
// QBACKUP_LONG is 1.
func Count(short, long int) int {
	if os.Getenv("QBACKUP_LONG") == "1" {
		return long
	}
	return short
}
