package store

import (
	"bytes"
	"hash/crc32"
)

// Body is the content of an object to be put: bytes in memory, so that they can
// be sent any number of times, with their checksum. The zero Body is empty.
// Values may be copied and shared; the bytes are not copied.
type Body struct {
	b   []byte
	crc uint32
}

// NewBody wraps b, which must not change while a Put of it runs.
func NewBody(b []byte) Body {
	return Body{b: b, crc: crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))}
}

// Bytes returns the content itself; do not write to it.
func (b Body) Bytes() []byte { return b.b }

// Size returns the length in bytes.
func (b Body) Size() int64 { return int64(len(b.b)) }

// CRC32C returns the CRC-32 with the Castagnoli polynomial (RFC 3720, B.4), the
// checksum that S3 calls CRC32C.
func (b Body) CRC32C() uint32 { return b.crc }

// Reader returns a new reader of the content from its start.
func (b Body) Reader() *bytes.Reader { return bytes.NewReader(b.b) }
