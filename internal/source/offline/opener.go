package offline

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/facts"
)

// opener opens the backing and data files of one disk, for reading, if they lie
// in an allowed folder, and locks them as a reader. It keeps what it opened.
type opener struct {
	allowed []string // absolute, without symbolic links
	hold    bool
	// names says under which name each path was reached. QEMU takes a relative
	// name in an image from there, and not from where a symbolic link leads.
	names map[string]string
	files []*file
}

// newOpener starts a disk with its top file.
func newOpener(allowDirs []string, hold bool, top *file) (*opener, error) {
	o := &opener{hold: hold, names: map[string]string{top.path: top.name}, files: []*file{top}}
	for _, name := range allowDirs {
		_, path, err := resolve(name)
		if err != nil {
			return nil, fmt.Errorf("allowed folder %s: %w", name, err)
		}
		o.allowed = append(o.allowed, path)
	}
	return o, nil
}

// OpenLayer opens the file that r names. The path it returns has no symbolic
// links.
func (o *opener) OpenLayer(r qcow2.Reference) (qcow2.File, string, error) {
	name, path, err := o.locate(r)
	if err != nil {
		return nil, "", err
	}
	f, err := o.openBeneath(path)
	if err != nil {
		return nil, "", err
	}
	role := facts.RoleBacking
	if r.Role == qcow2.DataFile {
		role = facts.RoleData
	}
	layer, err := newFile(role, name, path, f, qcow2.NewOSFile(f))
	if err != nil {
		return nil, "", err
	}
	if err := o.accept(layer); err != nil {
		return nil, "", errors.Join(err, layer.close())
	}
	return layer.io, path, nil
}

// locate finds where a name leads, without opening anything.
func (o *opener) locate(r qcow2.Reference) (name, path string, err error) {
	candidates := []string{r.Name}
	if !filepath.IsAbs(r.Name) {
		from, ok := o.names[r.From]
		if !ok {
			from = r.From
		}
		candidates[0] = folderOf(from) + "/" + r.Name
		if r.Role == qcow2.DataFile {
			// QEMU looks for a data file from its own working folder, which
			// nobody can know afterwards.
			candidates = append(candidates, r.Name)
		}
	}
	var missing error
	for _, candidate := range candidates {
		absolute, found, err := resolve(candidate)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
			missing = errors.Join(missing, err)
		case err != nil:
			return "", "", err
		case path == "":
			name, path = absolute, found
		case path != found:
			return "", "", fmt.Errorf("both %s and %s are there: %w", path, found, qcow2.ErrUnsupported)
		}
	}
	if path == "" {
		return "", "", missing
	}
	return name, path, nil
}

// folderOf cuts off the last component of an absolute path that is not clean.
func folderOf(path string) string { return path[:strings.LastIndexByte(path, '/')+1] }

// openBeneath opens a path without symbolic links below one of the allowed
// folders. The kernel makes sure of that: what has become a symbolic link since
// the path was resolved is an error and not a way out.
func (o *opener) openBeneath(path string) (*os.File, error) {
	for _, folder := range o.allowed {
		rest, err := filepath.Rel(folder, path)
		if err != nil || rest == "." || rest == ".." || strings.HasPrefix(rest, "../") {
			continue
		}
		dir, err := os.OpenFile(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		// A look first, because opening alone does something to some devices.
		look, err := openat2(dir, rest, path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW)
		if err != nil {
			return nil, err
		}
		info, err := look.Stat()
		if err = errors.Join(err, look.Close()); err != nil {
			return nil, err
		}
		if err := checkKind(path, info); err != nil {
			return nil, err
		}
		return openat2(dir, rest, path, unix.O_RDONLY|openFlags)
	}
	return nil, fmt.Errorf("%s lies in no allowed folder: %w", path, qcow2.ErrNotAllowed)
}

// openat2 opens rest below dir, and path is what it is called in errors.
func openat2(dir *os.File, rest, path string, flags uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS}
	for attempt := 0; ; attempt++ {
		fd, err := unix.Openat2(int(dir.Fd()), rest, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && attempt < openAttempts:
			// EAGAIN: something was renamed meanwhile, and the kernel could
			// not be sure that it stayed below the folder.
			continue
		case errors.Is(err, unix.ENOSYS):
			err = fmt.Errorf("opening files that an image names needs Linux 5.6: %w", err)
		}
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
}

// accept checks and locks a file that was opened, and keeps it.
func (o *opener) accept(f *file) error {
	for _, other := range o.files {
		if other.id == f.id {
			return fmt.Errorf("%s and %s are one file: %w", f.path, other.path, qcow2.ErrCorrupt)
		}
	}
	if err := f.begin(o.hold); err != nil {
		return err
	}
	o.names[f.path] = f.name
	o.files = append(o.files, f)
	return nil
}

// begin takes the locks of the reading phase, and makes sure that what is read
// from here on is what the file holds now.
func (f *file) begin(hold bool) error {
	lock := f.locks.read
	if hold {
		lock = f.locks.denyWriters
	}
	if f.block && !hold {
		return &source.UsableError{Path: f.path, Err: errors.New("it is a block device, on which the writes of a machine that starts meanwhile leave no trace"),
			Hint: "keep machines from starting with --hold"}
	}
	if err := lock(); err != nil {
		return f.lockError(err)
	}
	if err := f.dropPages(); err != nil {
		return err
	}
	return f.settle()
}

// lockError names the holder when a lock is in the way.
func (f *file) lockError(err error) error {
	var conflict *conflictError
	if errors.As(err, &conflict) {
		return heldError(f.path, f.id, f.os)
	}
	if errors.Is(err, errNoLocks) {
		return &source.UsableError{Path: f.path, Err: err, Hint: "move the image to a file system that has them"}
	}
	return err
}
