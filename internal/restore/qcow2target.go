package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/qbackup/qbackup/internal/qcow2"
)

const qcow2ClusterBits = 16

// Qcow2Target writes a disk into a thin qcow2 image with clusters of 64 KiB. Clusters that are zero are not allocated.
type Qcow2Target struct {
	file   *File
	image  *qcow2.Writer
	bitmap string // empty: none
}

// NewQcow2Target begins an image of sizeBytes with one empty recording bitmap in f, which must be a file under
// construction: a device may hold bytes that would shine through. A disk of size 0 cannot have a bitmap and gets none.
func NewQcow2Target(f *File, sizeBytes int64, bitmap qcow2.BitmapSpec) (*Qcow2Target, error) {
	if f.device {
		return nil, fmt.Errorf("%s is a block device; a qcow2 image is restored to a file: %w", f.path, fs.ErrInvalid)
	}
	o := qcow2.CreateOptions{SizeBytes: sizeBytes, ClusterBits: qcow2ClusterBits, Bitmap: &bitmap}
	if sizeBytes == 0 {
		o.Bitmap, bitmap.Name = nil, ""
	}
	w, err := qcow2.Create(imageFile{qcow2.NewOSFile(f.File), f.behind}, o)
	if err != nil {
		return nil, fmt.Errorf("begin the image: %w", noSpace(err))
	}
	return &Qcow2Target{file: f, image: w, bitmap: bitmap.Name}, nil
}

func (t *Qcow2Target) WriteAt(p []byte, off int64) (int, error) {
	n, err := t.image.WriteAt(p, off)
	return n, noSpace(err)
}

// Align is one cluster.
func (t *Qcow2Target) Align() int64 { return 1 << qcow2ClusterBits }

// Zero leaves the clusters unallocated.
func (t *Qcow2Target) Zero(context.Context, int64, int64) error { return nil }

// Finish writes what makes the file an image. Without it the file is none.
func (t *Qcow2Target) Finish() error {
	err := t.image.Close()
	if errors.Is(err, qcow2.ErrNoSpace) {
		return fmt.Errorf("finish the image: %w: %w", ErrNoSpace, err)
	}
	if err != nil {
		return fmt.Errorf("finish the image: %w", noSpace(err))
	}
	return nil
}

// DropBitmap takes the bitmap out of a finished image that lacks ranges: it must not say that the image is the point.
func (t *Qcow2Target) DropBitmap() error {
	if t.bitmap == "" {
		return nil
	}
	editor, err := qcow2.OpenEditor(qcow2.NewOSFile(t.file.File))
	if err == nil {
		err = editor.Replace(nil, []string{t.bitmap})
	}
	if err != nil {
		return fmt.Errorf("take the bitmap out of the image: %w", err)
	}
	return nil
}
