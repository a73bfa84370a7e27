package bitmapscan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
)

// bufferBytes bounds one read of bitmap data. It is a multiple of every word
// and of pieces of edges, and long enough that a spinning disk or a network
// file system spends its time on reading.
const bufferBytes = 256 << 10

// piece is a stretch of the bitmap: all clean, all dirty, or given by words.
type piece struct {
	first, count int64 // bits
	kind         kind
	// words has the bits of a kind of mixed, whole words of wordBytes, with
	// zeros after the last of count bits. It is valid until the next piece.
	words []byte
}

type kind uint8

const (
	clean kind = iota
	dirty
	mixed
)

func kindOf(entry uint64) kind {
	switch {
	case entry&entryOffsetMask != 0:
		return mixed
	case entry&entryAllDirty != 0:
		return dirty
	}
	return clean
}

// pieces streams the whole of a validated bitmap in order, without gaps.
func (b *Bitmap) pieces(ctx context.Context) iter.Seq2[piece, error] {
	return func(yield func(piece, error) bool) {
		bitsPerEntry, bits := b.ClusterBytes*8, ceilDiv(b.SizeBytes, b.GranularityBytes)
		var buffer []byte
		for i := 0; i < len(b.Table); {
			n := b.alike(i)
			first := int64(i) * bitsPerEntry
			p := piece{first: first, count: min(int64(n)*bitsPerEntry, bits-first), kind: kindOf(b.Table[i])}
			if p.kind == mixed {
				if buffer == nil {
					buffer = make([]byte, min(bufferBytes, int64(len(b.Table))*b.ClusterBytes))
				}
				if !b.read(ctx, p, int64(b.Table[i]&entryOffsetMask), buffer, yield) {
					return
				}
			} else if !give(ctx, p, yield) {
				return
			}
			i += n
		}
	}
}

// alike returns how many entries from i on can be taken as one: of the same
// kind, and with data that lies in one stretch of the file.
func (b *Bitmap) alike(i int) int {
	first, k := b.Table[i], kindOf(b.Table[i])
	n := 1
	for i+n < len(b.Table) {
		next := b.Table[i+n]
		if kindOf(next) != k || k == mixed && next != first+uint64(n)*uint64(b.ClusterBytes) {
			break
		}
		n++
	}
	return n
}

// read gives out the mixed piece p, whose words begin at offset of the file,
// a buffer at a time. False: an error was given, or the consumer has left.
func (b *Bitmap) read(ctx context.Context, p piece, offset int64, buffer []byte, yield func(piece, error) bool) bool {
	for p.count > 0 {
		part := p
		part.count = min(p.count, int64(len(buffer))*8)
		// Only the bytes that hold bits of the disk have to be in the file.
		// QEMU writes whole clusters of bitmap data, so a writer that cuts
		// the last one short is not QEMU; its bits are whole all the same.
		need := ceilDiv(part.count, 8)
		if err := readFull(ctx, b.Data, buffer[:need], offset); err != nil {
			yield(piece{}, &Error{Structure: "data", Offset: offset, Err: err})
			return false
		}
		part.words = maskTail(buffer, part.count)
		if !yield(part, nil) {
			return false
		}
		p.first += part.count
		p.count -= part.count
		offset += need
	}
	return true
}

func give(ctx context.Context, p piece, yield func(piece, error) bool) bool {
	if err := ctx.Err(); err != nil {
		yield(piece{}, fmt.Errorf("scan bitmap: %w", err))
		return false
	}
	return yield(p, nil)
}

// readFull fills p from offset. Whatever does not fill it is an error.
func readFull(ctx context.Context, r io.ReaderAt, p []byte, offset int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := r.ReadAt(p, offset)
	switch {
	case n == len(p):
		return nil // an io.EOF beside the last bytes is no error
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("the image ends after %d of %d bytes: %w", n, len(p), ErrCorrupt)
	}
	return fmt.Errorf("read bitmap data: %w", err)
}

// maskTail returns the whole words that hold the first bits of buffer, and
// clears every bit after those. Writers may leave ones there: QEMU ignores
// them, and so must we.
func maskTail(buffer []byte, bits int64) []byte {
	words := buffer[:ceilDiv(bits, wordBits)*wordBytes]
	if rest := bits % wordBits; rest != 0 {
		last := words[len(words)-wordBytes:]
		// Bytes of this word beyond those read are left over from before;
		// the mask removes them too.
		w := binary.LittleEndian.Uint64(last) & (1<<rest - 1)
		binary.LittleEndian.PutUint64(last, w)
	}
	return words
}
