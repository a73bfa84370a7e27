package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/restore"
)

// restoredExtra is what restore --json says of each extra file.
type restoredExtra struct {
	MessageType string            `json:"message_type"` // "restored_extra"
	Machine     ident.MachineName `json:"machine"`
	Point       ident.RunID       `json:"point"`
	Name        string            `json:"name"`
	To          string            `json:"to"`
	SizeBytes   int64             `json:"size_bytes"`
}

// restoreExtras writes the extra files of a point into a folder. A file that is there is replaced only with force.
func (p *program) restoreExtras(point *repo.Point, folder string, force bool) error {
	record := point.Record()
	if record.Extras == nil {
		return fmt.Errorf("%w: it has none; points of libvirt domains do", repo.ErrNoExtra)
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for _, x := range record.Extras.Files {
		to := filepath.Join(folder, x.Name) // a name has the form of a disk's: no path
		if err := writeExtra(point, x.Name, to, x.Bytes, force); err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
		line := restoredExtra{MessageType: "restored_extra", Machine: record.Machine, Point: record.Run, Name: x.Name, To: to, SizeBytes: x.Bytes}
		if !p.json {
			p.say("%s: point %s to %s: %s", x.Name, record.Run, to, size(x.Bytes))
		} else if err := p.printJSON(line); err != nil {
			return err
		}
	}
	return nil
}

func writeExtra(point *repo.Point, name, to string, bytes int64, force bool) error {
	from, err := point.Extra(name)
	if err != nil {
		return err
	}
	file, err := restore.CreateFile(to, bytes, force)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.NewOffsetWriter(file, 0), from); err != nil {
		_ = file.Discard()
		return err
	}
	return file.Publish()
}
