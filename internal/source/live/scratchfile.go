package live

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/scratch"
)

// filePrefix begins the names of the files and folders that are made for a machine.
func filePrefix(family ident.FamilyID) string { return namePrefix + family.String() + "-" }

// prepare makes a scratch image for each disk and adds it to QEMU. A file loses its
// name when QEMU has opened it, so that nothing is left of it however this ends.
//
// The nodes are those that libvirt makes, and no more: a throttle node below the scratch
// image would slow guests down as the space ends, but makes QEMU 7.2 abort when the
// disk is in an I/O thread.
func (c *cut) prepare(ctx context.Context, family ident.FamilyID) error {
	uid := c.session.monitor.PeerUID()
	for _, d := range c.disks {
		path, err := makeScratch(c.space.Dir(), family, d.found.evidence.SizeBytes, uid)
		if err != nil {
			return err
		}
		err = c.session.do(ctx, "blockdev-add", args{
			"node-name": d.name(scratchNode), "driver": driverQcow2, "backing": d.found.node,
			// Nothing in it outlives the backup, so nothing has to reach the disk.
			"cache": args{"no-flush": true},
			"file":  args{"driver": "file", "node-name": d.name(fileNode), "filename": path},
		}, nil)
		if err := errors.Join(err, os.Remove(path)); err != nil {
			return fmt.Errorf("add the scratch image of disk %s: %w", d.found.evidence.Name, err)
		}
	}
	return nil
}

// makeScratch makes an empty image that QEMU's user may write to.
func makeScratch(dir string, family ident.FamilyID, sizeBytes int64, uid int) (path string, err error) {
	if err := scratch.CheckReach(dir, uid, scratch.PlaceFlag); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, filePrefix(family)+"*.qcow2")
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if uid >= 0 && uid != os.Geteuid() {
		if err := f.Chown(uid, -1); err != nil {
			return "", &source.UsableError{Path: f.Name(), Err: fmt.Errorf("give it to QEMU, which runs as user %d: %w", uid, err), Hint: "run as root or as that user"}
		}
	}
	w, err := qcow2.Create(unsynced{qcow2.NewOSFile(f)}, qcow2.CreateOptions{SizeBytes: sizeBytes})
	if err != nil {
		return "", err
	}
	return f.Name(), w.Close()
}

// unsynced is a file of which nothing has to outlive the machine's power.
type unsynced struct{ qcow2.File }

// Sync does nothing.
func (unsynced) Sync() error { return nil }

// removeStale removes what a run of this family made in a folder and did not live to
// remove. The caller holds the machine.
func removeStale(dir string, family ident.FamilyID) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for what an earlier run left: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filePrefix(family)) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove what an earlier run left: %w", err)
			}
		}
	}
	return nil
}

// socketFolder is a folder of its own for QEMU's NBD socket: QEMU's user may make it
// there, and nobody else gets to it.
type socketFolder struct{ dir, path string }

func newSocketFolder(runtimeDir string, family ident.FamilyID, uid int) (*socketFolder, error) {
	const socketName = "nbd"
	if err := os.MkdirAll(runtimeDir, 0o711); err != nil {
		return nil, err
	}
	if err := scratch.CheckReach(runtimeDir, uid, "RUNTIME_DIRECTORY or --state-dir"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(runtimeDir, filePrefix(family))
	if err != nil {
		return nil, err
	}
	f := &socketFolder{dir, filepath.Join(dir, socketName)}
	if len(f.path) > socketPathMax {
		return nil, errors.Join(fmt.Errorf("%s: %d bytes are too long for a socket, of at most %d; choose a shorter --state-dir", f.path, len(f.path), socketPathMax), f.remove())
	}
	if uid >= 0 && uid != os.Geteuid() {
		if err := os.Chown(dir, uid, -1); err != nil {
			return nil, errors.Join(err, f.remove())
		}
	}
	return f, nil
}

func (f *socketFolder) remove() error { return os.RemoveAll(f.dir) }
