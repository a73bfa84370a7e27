package virt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source/scratch"
)

// socketName is the socket of QEMU's NBD server.
const socketName = "qb1.nbd"

// socketPlace is where QEMU makes its NBD socket, so that nobody but QEMU's user and
// root gets to it.
type socketPlace struct {
	path string
	own  string // a folder of ours to be removed; empty: it is libvirt's
}

// newSocketPlace takes libvirt's folder for the sockets of this QEMU, which exists
// for this purpose and in which SELinux and AppArmor let QEMU work, or a folder of its
// own in Options.RuntimeDir.
func (m *Machine) newSocketPlace(ctx context.Context, d *domain) (*socketPlace, error) {
	if m.o.RuntimeDir != "" {
		return ownPlace(m.o.RuntimeDir, m.o.Family, d.owner)
	}
	answer, err := m.virsh.do(ctx, ask(d.uuid, queryChardevs))
	if err != nil {
		return nil, err
	}
	var list []chardev
	if err := parseAnswer(answer, &list); err != nil {
		return nil, err
	}
	folder := monitorFolder(list)
	if folder == "" {
		return nil, unusable(m.what(), errors.New("QEMU does not say where libvirt keeps its sockets"), "name a folder in which QEMU may make one")
	}
	if _, err := os.Stat(folder); err != nil {
		return nil, unusable(folder, err, "run as root: libvirt keeps the sockets of its machines there")
	}
	return checked(&socketPlace{path: filepath.Join(folder, socketName)})
}

// ownPlace makes a folder that belongs to QEMU's user. One that an earlier run has
// left is removed.
func ownPlace(dir string, family ident.FamilyID, owner int) (*socketPlace, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if err := scratch.CheckReach(dir, owner, "RUNTIME_DIRECTORY or --state-dir"); err != nil {
		return nil, err
	}
	folder := filepath.Join(dir, ident.BitmapPrefix+family.String())
	if err := os.RemoveAll(folder); err != nil {
		return nil, err
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	p := &socketPlace{path: filepath.Join(folder, socketName), own: folder}
	if err := scratch.Give(folder, owner); err != nil {
		return nil, errors.Join(err, p.remove())
	}
	return checked(p)
}

func checked(p *socketPlace) (*socketPlace, error) {
	if len(p.path) > socketPathMax {
		return nil, errors.Join(fmt.Errorf("%s: longer than %d bytes, the longest path of a socket", p.path, socketPathMax), p.remove())
	}
	return p, nil
}

// remove takes away what QEMU left. It may be called again.
func (p *socketPlace) remove() error {
	err := os.Remove(p.path)
	if p.own != "" {
		err = errors.Join(ignoreAbsent(err), os.Remove(p.own))
	}
	return ignoreAbsent(err)
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
