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
	if err := scratch.CheckReach(c.space.Dir(), uid, scratch.PlaceFlag); err != nil {
		return err
	}
	for _, d := range c.disks {
		path, err := c.space.Image(filePrefix(family)+"*.qcow2", d.found.evidence.SizeBytes, uid)
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
	if err := scratch.Give(dir, uid); err != nil {
		return nil, errors.Join(err, f.remove())
	}
	return f, nil
}

func (f *socketFolder) remove() error { return os.RemoveAll(f.dir) }
