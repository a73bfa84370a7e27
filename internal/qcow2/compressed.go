package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

const (
	// unpackedCacheBytes bounds the unpacked clusters that one image keeps for
	// readers that want less than a cluster; two are kept in any case.
	unpackedCacheBytes = 4 << 20
	minUnpackedCached  = 2
	// maxZstdWindowBytes is the limit of zstd's own decoder.
	maxZstdWindowBytes = 128 << 20
)

// errUnpack is reported for packed bytes that are not one cluster.
var errUnpack = fmt.Errorf("its packed bytes are damaged: %w", ErrCorrupt)

// unpacker unpacks compressed clusters. It is safe for parallel use.
type unpacker struct {
	kind         Compression
	clusterBytes int64
	packed       sync.Pool // of *[]byte, for packed bytes
	flates       sync.Pool // of io.Reader that is a flate.Resetter
	zstd         func() (*zstd.Decoder, error)
	places       []atomic.Pointer[unpackedCluster]
}

// unpackedCluster is a cluster as the guest sees it; off is its place on the
// disk. It is never changed.
type unpackedCluster struct {
	off   int64
	bytes []byte
}

func newUnpacker(h *Header) *unpacker {
	u := &unpacker{kind: h.Compression, clusterBytes: h.ClusterBytes()}
	u.packed.New = func() any { return new([]byte) }
	u.flates.New = func() any { return flate.NewReader(bytes.NewReader(nil)) }
	u.zstd = sync.OnceValues(func() (*zstd.Decoder, error) {
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(maxZstdWindowBytes))
	})
	u.places = make([]atomic.Pointer[unpackedCluster], max(unpackedCacheBytes/u.clusterBytes, minUnpackedCached))
	return u
}

// read fills p with the bytes of the compressed mapping m, which has the length
// of p and does not leave its cluster.
func (u *unpacker) read(f File, fileBytes int64, m Mapping, p []byte) error {
	if int64(len(p)) == u.clusterBytes {
		return u.readCluster(f, fileBytes, m, p)
	}
	within := m.Off & (u.clusterBytes - 1)
	start := m.Off - within
	place := &u.places[start/u.clusterBytes%int64(len(u.places))]
	c := place.Load()
	if c == nil || c.off != start {
		c = &unpackedCluster{off: start, bytes: make([]byte, u.clusterBytes)}
		if err := u.readCluster(f, fileBytes, m, c.bytes); err != nil {
			return err
		}
		place.Store(c)
	}
	copy(p, c.bytes[within:])
	return nil
}

// readCluster reads and unpacks the whole cluster of m into dst. The last
// sector of the packed bytes may lie beyond the end of the file.
func (u *unpacker) readCluster(f File, fileBytes int64, m Mapping, dst []byte) error {
	buffer := u.packed.Get().(*[]byte)
	defer u.packed.Put(buffer)
	n := min(m.HostBytes, fileBytes-m.Host)
	if int64(cap(*buffer)) < n {
		*buffer = make([]byte, n)
	}
	packed := (*buffer)[:n]
	if err := readPadded(f, packed, m.Host, fileBytes); err != nil {
		return readFailed("compressed cluster", m.Host, err)
	}
	if err := u.unpack(dst, packed); err != nil {
		return &Error{Structure: "compressed cluster", Offset: m.Host, Err: err, Hint: hintCheck}
	}
	return nil
}

// unpack fills dst, one cluster, from packed bytes. What follows them, up to
// the end of the last sector, belongs to somebody else.
func (u *unpacker) unpack(dst, packed []byte) error {
	if u.kind == Zstd {
		return u.unpackZstd(dst, packed)
	}
	return u.unpackDeflate(dst, packed)
}

// unpackDeflate reads a raw deflate stream. Like QEMU it stops when the cluster
// is full, and so accepts streams without an end marker.
func (u *unpacker) unpackDeflate(dst, packed []byte) error {
	r := u.flates.Get().(io.Reader)
	defer u.flates.Put(r)
	if err := r.(flate.Resetter).Reset(bytes.NewReader(packed), nil); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, dst); err != nil {
		return errUnpack
	}
	return nil
}

// unpackZstd reads zstd frames until the cluster is full; the last frame must
// end there. A decoder given all of packed would take the bytes behind the last
// frame for another one, so each frame is measured first.
func (u *unpacker) unpackZstd(dst, packed []byte) error {
	decoder, err := u.zstd()
	if err != nil {
		return err
	}
	for len(dst) > 0 {
		n, err := zstdFrameBytes(packed)
		if err != nil {
			return errUnpack
		}
		// The capacity of dst bounds what the frame can unpack to.
		out, err := decoder.DecodeAll(packed[:n], dst[:0:len(dst)])
		if err != nil || len(out) > len(dst) {
			return errUnpack
		}
		copy(dst, out) // onto itself, unless the decoder needed another place
		dst, packed = dst[len(out):], packed[n:]
	}
	return nil
}

var errFrame = errors.New("not a whole zstd frame")

// zstdFrameBytes returns the length of the frame that b begins with: RFC 8878,
// section 3.1. Every step moves on by at least 3 bytes.
func zstdFrameBytes(b []byte) (int, error) {
	const (
		blockHeaderBytes = 3
		blockRunLength   = 1
		blockReserved    = 3
		checksumBytes    = 4
	)
	var header zstd.Header
	if err := header.Decode(b); err != nil {
		return 0, err
	}
	n := header.HeaderSize
	if header.Skippable {
		n += int(header.SkippableSize)
		if n > len(b) {
			return 0, errFrame
		}
		return n, nil
	}
	for last := false; !last; {
		if len(b)-n < blockHeaderBytes {
			return 0, errFrame
		}
		block := int(b[n]) | int(b[n+1])<<8 | int(b[n+2])<<16
		last = block&1 != 0
		size := block >> 3
		switch block >> 1 & 3 {
		case blockRunLength:
			size = 1
		case blockReserved:
			return 0, errFrame
		}
		n += blockHeaderBytes + size
	}
	if header.HasCheckSum {
		n += checksumBytes
	}
	if n > len(b) {
		return 0, errFrame
	}
	return n, nil
}
