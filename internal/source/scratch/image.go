package scratch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qcow2"
)

// Image makes an empty image that QEMU, which runs as user uid, may write to. A star in the name stands for something
// random; without one the file must not exist. Nothing in it has to outlive the machine's power.
func (s *Space) Image(name string, sizeBytes int64, uid int) (path string, err error) {
	f, err := create(s.dir, name)
	if err != nil {
		return "", err
	}
	if err := s.fill(f, sizeBytes, uid); err != nil {
		return "", errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = append(s.images, f)
	return f.Name(), nil
}

func (s *Space) fill(f *os.File, sizeBytes int64, uid int) error {
	if err := Give(f.Name(), uid); err != nil {
		return err
	}
	w, err := qcow2.Create(unsynced{qcow2.NewOSFile(f)}, qcow2.CreateOptions{SizeBytes: sizeBytes})
	if err != nil {
		return err
	}
	return w.Close()
}

// Used is how many bytes the images take.
func (s *Space) Used() (bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.images {
		var stat unix.Stat_t
		if unix.Fstat(int(f.Fd()), &stat) == nil {
			bytes += stat.Blocks * blockBytes
		}
	}
	return bytes
}

// blockBytes is the unit of the system's count.
const blockBytes = 512

// Close lets go of the images. It may be called more than once, also of none.
func (s *Space) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.images {
		_ = f.Close()
	}
	s.images = nil
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
