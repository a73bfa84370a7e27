package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"

	"github.com/qbackup/qbackup/internal/source"
)

// Give lets QEMU, which runs as user uid, write to a file or folder of ours, and nobody else: it becomes that user's, where
// we may do so, or else that of a group which both of us are in. A negative uid and ourselves need nothing.
func Give(path string, uid int) error {
	if uid < 0 || uid == os.Geteuid() {
		return nil
	}
	err := os.Chown(path, uid, -1)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if shareErr := share(path, uid); shareErr != nil {
		return &source.UsableError{
			Path: path, Err: fmt.Errorf("give it to QEMU, which runs as user %d: %w; %w", uid, err, shareErr),
			Hint: "run as root or as that user, or add our user to a group of that user's: usermod --append --groups kvm qbackup",
		}
	}
	return nil
}

// errNoGroup is for users that have nothing in common.
var errNoGroup = errors.New("no group is ours and its")

// share gives a file to a group.
func share(path string, uid int) error {
	gid, err := common(uid)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o660)
	if info.IsDir() {
		mode = 0o770
	}
	return errors.Join(os.Chown(path, -1, gid), os.Chmod(path, mode))
}

// common finds a group that a user is in and so are we.
func common(uid int) (gid int, err error) {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return 0, err
	}
	theirs, err := u.GroupIds()
	if err != nil {
		return 0, err
	}
	ours, err := os.Getgroups()
	if err != nil {
		return 0, err
	}
	for _, g := range append(ours, os.Getegid()) {
		if slices.Contains(theirs, strconv.Itoa(g)) {
			return g, nil
		}
	}
	return 0, errNoGroup
}
