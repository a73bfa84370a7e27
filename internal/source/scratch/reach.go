package scratch

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/qbackup/qbackup/internal/source"
)

// CheckReach makes sure that QEMU, which runs as a user of its own, gets to a folder at
// all: it must be allowed to pass through every folder above. What decides in the end
// is QEMU's own attempt; this one can say what is in the way. A negative uid, root and
// ourselves are not asked about. other says how another folder is chosen.
func CheckReach(dir string, uid int, other string) error {
	if uid <= 0 || uid == os.Geteuid() {
		return nil
	}
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if ok && int(stat.Uid) != uid && info.Mode().Perm()&0o011 == 0 {
			return &source.UsableError{Path: dir, Err: fmt.Errorf("QEMU runs as user %d, who may not enter %s: %w", uid, at, fs.ErrPermission),
				Hint: "give others the right to enter it (chmod o+x), or name another place with " + other}
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}
