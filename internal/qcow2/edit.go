package qcow2

import (
	"fmt"
	"io"
)

// writeAt writes all of p.
func writeAt(w io.WriterAt, p []byte, off int64, structure string) error {
	if _, err := w.WriteAt(p, off); err != nil {
		return &Error{Structure: structure, Offset: off, Err: fmt.Errorf("write: %w", err)}
	}
	return nil
}

// writeChanged writes what changes from before to after, which are equally long
// and lie at off: one write, from the first to the last byte that differs.
func writeChanged(w io.WriterAt, before, after []byte, off int64, structure string) error {
	from, to := 0, len(after)
	for from < to && before[from] == after[from] {
		from++
	}
	for from < to && before[to-1] == after[to-1] {
		to--
	}
	if from == to {
		return nil
	}
	return writeAt(w, after[from:to], off+int64(from), structure)
}

// writeZeros writes n zero bytes.
func writeZeros(w io.WriterAt, off, n int64, structure string) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		piece := zeros[:min(n, int64(len(zeros)))]
		if err := writeAt(w, piece, off, structure); err != nil {
			return err
		}
		off += int64(len(piece))
		n -= int64(len(piece))
	}
	return nil
}

// syncFile makes all writes so far durable.
func syncFile(f File) error {
	if err := f.Sync(); err != nil {
		return &Error{Structure: "image", Offset: -1, Err: fmt.Errorf("make writes durable: %w", err)}
	}
	return nil
}
