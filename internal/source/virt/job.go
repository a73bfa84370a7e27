package virt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/source/exported"
)

// backupXML is a backup job, as far as it is read and written.
type backupXML struct {
	XMLName xml.Name        `xml:"domainbackup"`
	Mode    string          `xml:"mode,attr"`
	Server  backupServer    `xml:"server"`
	Disks   []backupDiskXML `xml:"disks>disk"`
}

type backupServer struct {
	Transport string `xml:"transport,attr"`
	Socket    string `xml:"socket,attr,omitempty"`
}

type backupDiskXML struct {
	Name        string        `xml:"name,attr"`
	Backup      string        `xml:"backup,attr"`
	Type        string        `xml:"type,attr,omitempty"`
	Mode        string        `xml:"backupmode,attr,omitempty"`
	Incremental string        `xml:"incremental,attr,omitempty"`
	Export      string        `xml:"exportname,attr,omitempty"`
	Bitmap      string        `xml:"exportbitmap,attr,omitempty"`
	Scratch     *backupTarget `xml:"scratch"`
}

type backupTarget struct {
	File string `xml:"file,attr"`
}

// scratchSuffix ends the name of a scratch file. Profiles of AppArmor know images by
// such endings.
const scratchSuffix = ".qcow2"

// scratchPath is the scratch file of a disk. Its name says whose it is.
func scratchPath(dir string, name ident.BitmapName, target string) string {
	return filepath.Join(dir, name.String()+"-"+target+scratchSuffix)
}

// scratchOf reads from a scratch file's name which run made it.
func scratchOf(path string) (ident.BitmapName, bool) {
	base := filepath.Base(path)
	if len(base) <= ident.BitmapNameLen {
		return ident.BitmapName{}, false
	}
	return ident.ParseBitmapName(base[:ident.BitmapNameLen])
}

// parseBackup reads a backup job, and gives its scratch files.
func parseBackup(text string) ([]string, error) {
	var x backupXML
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return nil, fmt.Errorf("read the definition of a backup job: %w", err)
	}
	var files []string
	for _, d := range x.Disks {
		if d.Scratch != nil && d.Scratch.File != "" {
			files = append(files, d.Scratch.File)
		}
	}
	return files, nil
}

// operationBackup is how virsh calls a backup job.
const operationBackup = "Backup"

// parseJob reads which job is active, in virsh's words; empty: none.
func parseJob(text string) string {
	active := false
	operation := "Unknown"
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "Job type":
			active = value == "Unbounded" || value == "Bounded"
		case "Operation":
			operation = value
		}
	}
	if !active {
		return ""
	}
	return operation
}

// backupJob gives the scratch files of the backup job that libvirt has for the
// domain; none: it has no such job.
func (m *Machine) backupJob(ctx context.Context, uuid string) ([]string, error) {
	text, err := m.virsh.do(ctx, []string{"backup-dumpxml", "--domain", uuid})
	if says(err, saysNoBackup, saysNotRunning) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseBackup(text)
}

// belongs tells whether one of a job's scratch files has a name that mine accepts.
func belongs(files []string, mine func(ident.BitmapName) bool) bool {
	return slices.ContainsFunc(files, func(path string) bool {
		name, ok := scratchOf(path)
		return ok && mine(name)
	})
}

// endJob ends the backup job whose scratch files mine accepts, and waits until it is
// gone with them. Jobs of others are left alone. It may be repeated.
func (m *Machine) endJob(ctx context.Context, uuid string, mine func(ident.BitmapName) bool) error {
	files, err := m.backupJob(ctx, uuid)
	if err != nil || !belongs(files, mine) {
		return err
	}
	// Mostly it has ended when it was told to, and one process does both.
	info, err := m.virsh.do(ctx, []string{fmt.Sprintf("domjobabort %[1]s; domjobinfo %[1]s", uuid)})
	if err == nil && parseJob(info) == "" {
		return nil
	}
	_, err = m.virsh.do(ctx, []string{"domjobabort", "--domain", uuid})
	if err != nil && !says(err, saysNoJob, saysNotRunning) {
		return err
	}
	return exported.Until(ctx, func() (bool, error) {
		files, err := m.backupJob(ctx, uuid)
		return !belongs(files, mine), err
	})
}

// removeScratch removes scratch files that mine accepts. libvirt does so itself with
// the job; what is left was left by a libvirt or a host that died.
func removeScratch(dir string, mine func(ident.BitmapName) bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for old scratch files: %w", err)
	}
	for _, e := range entries {
		name, ok := scratchOf(e.Name())
		if !ok || !mine(name) || !strings.HasSuffix(e.Name(), scratchSuffix) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an old scratch file: %w", err)
		}
	}
	return nil
}

// recover ends what an earlier run of the family left at work, and makes sure that
// nobody else is.
func (m *Machine) recover(ctx context.Context, uuid string) error {
	family := func(name ident.BitmapName) bool { return name.Family == m.o.Family }
	active := func() (string, error) {
		text, err := m.virsh.do(ctx, []string{"domjobinfo", "--domain", uuid})
		return parseJob(text), err
	}
	operation, err := active()
	if err == nil && operation == operationBackup {
		if err = m.endJob(ctx, uuid, family); err != nil {
			return fmt.Errorf("end the backup job of an earlier run: %w", err)
		}
		operation, err = active()
	}
	if err != nil {
		return err
	}
	if operation != "" {
		return unusable(m.what(), fmt.Errorf("%w: %s", ErrBusy, operation), "wait until it has ended; `virsh domjobinfo` shows it")
	}
	return removeScratch(m.o.ScratchDir, family)
}
