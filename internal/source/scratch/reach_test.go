package scratch

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/source"
)

func TestAFolderThatQEMUMayNotEnterIsFoundOut(t *testing.T) {
	const stranger = 64055
	top, err := os.MkdirTemp("", "reach-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	dir := filepath.Join(top, "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode fs.FileMode
		uid  int
		ok   bool
	}{{0o711, stranger, true}, {0o700, stranger, false}, {0o700, -1, true}, {0o700, 0, true}, {0o700, os.Geteuid(), true}} {
		if err := os.Chmod(top, c.mode); err != nil {
			t.Fatal(err)
		}
		err := CheckReach(dir, c.uid, PlaceFlag)
		if (err == nil) != c.ok {
			t.Errorf("mode %o, user %d: %v", c.mode, c.uid, err)
		}
		if err != nil && (!errors.Is(err, source.ErrUnusable) || !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), top+":")) {
			t.Errorf("%v", err)
		}
	}
	if err := CheckReach(filepath.Join(top, "none"), stranger, PlaceFlag); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
