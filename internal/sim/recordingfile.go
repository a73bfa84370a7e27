package sim

import (
	"fmt"
	"io"
	"slices"
	"sync"
)

// Op is one effect on a file: a write, or a sync.
type Op struct {
	Sync   bool
	Offset int64
	Data   []byte
}

// RecordingFile is a file in memory that records every write and every sync. It
// has the methods of an image file.
type RecordingFile struct {
	mu      sync.Mutex
	base    []byte
	content []byte
	ops     []Op
}

// NewRecordingFile returns a file that holds content, which is durable.
func NewRecordingFile(content []byte) *RecordingFile {
	return &RecordingFile{base: slices.Clone(content), content: slices.Clone(content)}
}

// ReadAt reads what was written last, durable or not.
func (r *RecordingFile) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= int64(len(r.content)) {
		return 0, io.EOF
	}
	n := copy(p, r.content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes and records; the file grows as needed.
func (r *RecordingFile) WriteAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off < 0 {
		return 0, fmt.Errorf("write at negative offset %d", off)
	}
	op := Op{Offset: off, Data: slices.Clone(p)}
	r.ops = append(r.ops, op)
	r.content = apply(r.content, off, op.Data)
	return len(p), nil
}

// Sync records that everything written so far is durable.
func (r *RecordingFile) Sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, Op{Sync: true})
	return nil
}

// Size returns the length of the file.
func (r *RecordingFile) Size() (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(len(r.content)), nil
}

// Content returns a copy of the file as its writer sees it.
func (r *RecordingFile) Content() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.content)
}

// Ops returns what was recorded.
func (r *RecordingFile) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ops)
}

// apply writes data into content, growing it with zeros as a file grows.
func apply(content []byte, off int64, data []byte) []byte {
	if end := off + int64(len(data)); end > int64(len(content)) {
		content = append(content, make([]byte, end-int64(len(content)))...)
	}
	copy(content[off:], data)
	return content
}
