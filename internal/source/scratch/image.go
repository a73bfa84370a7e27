package scratch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/qbackup/qbackup/internal/qcow2"
)

// Image makes an empty image that QEMU, which runs as user uid, may write to. A star in the name stands for something
// random; without one the file must not exist. Nothing in it has to outlive the machine's power.
func (s *Space) Image(name string, sizeBytes int64, uid int) (path string, err error) {
	f, err := create(s.dir, name)
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := Give(f.Name(), uid); err != nil {
		return "", err
	}
	w, err := qcow2.Create(unsynced{qcow2.NewOSFile(f)}, qcow2.CreateOptions{SizeBytes: sizeBytes})
	if err != nil {
		return "", err
	}
	return f.Name(), w.Close()
}

func create(dir, name string) (*os.File, error) {
	if strings.Contains(name, "*") {
		return os.CreateTemp(dir, name)
	}
	return os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// unsynced is a file of which nothing has to outlive the machine's power.
type unsynced struct{ qcow2.File }

// Sync does nothing.
func (unsynced) Sync() error { return nil }
