package offline

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/bitmapscan"
	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
)

// BitmapState is one bitmap of an image, whoever owns it.
type BitmapState struct {
	qcow2.Bitmap
	// DirtyBytes is the number of set bits times the granularity; -1 when the bits may not be believed.
	DirtyBytes int64
	// Problem says why not; empty: they may.
	Problem string
}

// ListBitmaps reads all bitmaps of a qcow2 image that nobody writes to. Files that the image refers to are not opened.
func ListBitmaps(ctx context.Context, path string) (list []BitmapState, err error) {
	f, err := openTop(openOSFile, path, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.begin(f.block); err != nil {
		return nil, asUnusable(path, err)
	}
	h, err := qcow2.ReadHeader(f.io)
	if err != nil {
		return nil, asUnusable(path, err)
	}
	directory, err := readDirectory(f.io, h)
	if err != nil {
		return nil, asUnusable(path, err)
	}
	for _, b := range directory {
		s := BitmapState{Bitmap: b, DirtyBytes: -1}
		switch {
		case !h.BitmapsValid():
			s.Problem = "not valid: a program that knows no bitmaps wrote to the image"
		case b.InUse:
			s.Problem = "in use: a machine runs on the image, or crashed on it"
		default:
			if s.DirtyBytes, err = countDirty(ctx, f.io, h, b); err != nil {
				return nil, asUnusable(path, fmt.Errorf("bitmap %s: %w", b.Name, err))
			}
		}
		list = append(list, s)
	}
	if err := f.locks.test(deniesRead, usesWrite, usesResize); err != nil {
		return nil, f.lockError(err)
	}
	return list, nil
}

func countDirty(ctx context.Context, f qcow2.File, h *qcow2.Header, b qcow2.Bitmap) (int64, error) {
	if b.TableEntries > maxTableEntries {
		return 0, fmt.Errorf("more than %d table entries: %w", maxTableEntries, qcow2.ErrUnsupported)
	}
	table, err := readTable(f, h, b)
	if err != nil {
		return 0, err
	}
	scan := bitmapscan.Bitmap{SizeBytes: h.SizeBytes, GranularityBytes: b.GranularityBytes, ClusterBytes: h.ClusterBytes(), Table: table, Data: f}
	bits, err := scan.Count(ctx)
	return bits * b.GranularityBytes, err
}

// EditBitmaps lets edit change the bitmaps of an image under the locks that QEMU takes for writing (I6).
func EditBitmaps(path string, edit func(*qcow2.Editor) error) (err error) {
	f, err := openTop(openOSFile, path, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if f.readOnly {
		return &source.UsableError{Path: path, Err: source.ErrReadOnly, Hint: "run as a user who may write to it"}
	}
	if err := f.begin(true); err != nil {
		return asUnusable(path, err)
	}
	if err := f.locks.claimWrite(); err != nil {
		return asUnusable(path, f.lockError(err))
	}
	editor, err := qcow2.OpenEditor(f.io)
	if err != nil {
		return asUnusable(path, err)
	}
	if err := edit(editor); err != nil {
		return asUnusable(path, err)
	}
	return nil
}
