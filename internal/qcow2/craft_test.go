package qcow2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// memoryFile is a File in memory that counts its reads, and notes a close.
type memoryFile struct {
	bytes  []byte
	reads  atomic.Int64
	closed bool
}

func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	f.reads.Add(1)
	return bytes.NewReader(f.bytes).ReadAt(p, off)
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	return 0, errors.New("reading must not write")
}

func (f *memoryFile) Sync() error          { return errors.New("reading must not write") }
func (f *memoryFile) Size() (int64, error) { return int64(len(f.bytes)), nil }
func (f *memoryFile) Close() error         { f.closed = true; return nil }

// The clusters of a crafted image.
const (
	craftRefcountCluster = 1
	craftL1Cluster       = 3
	craftL2Cluster       = 4 // one table per L1 entry from here on
)

// craftImage makes a whole version 3 image whose L2 tables exist and are empty.
// With spare clusters of data behind them, filled with their own number.
func craftImage(clusterBits uint32, size uint64, spare int, incompatible uint64) craft {
	b := craftHeader(3, clusterBits, size)
	entryBits := uint32(3)
	if incompatible&incompatExtendedL2 != 0 {
		entryBits = 4
	}
	coverage := uint64(1) << (2*clusterBits - entryBits)
	tables := int((size + coverage - 1) / coverage)
	b.put64(headerIncompatible, incompatible)
	b.put32(headerL1Entries, uint32(tables))
	cluster := 1 << clusterBits
	image := make(craft, (craftL2Cluster+tables+spare)*cluster)
	copy(image, b)
	for i := range tables {
		image.put64(craftL1Cluster*cluster+8*i, uint64(craftL2Cluster+i)<<clusterBits|entryCopied)
	}
	for i := craftL2Cluster + tables; i < craftL2Cluster+tables+spare; i++ {
		for at := i * cluster; at < (i+1)*cluster; at++ {
			image[at] = byte(i)
		}
	}
	return image
}

func openCraft(t testing.TB, b craft) *Image {
	t.Helper()
	m, err := OpenImage(&memoryFile{bytes: b}, ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func collectMappings(m *Image, off, n int64) (list []Mapping, err error) {
	for mapping, err := range m.Mappings(context.Background(), off, n) {
		if err != nil {
			return list, err
		}
		list = append(list, mapping)
	}
	return list, nil
}

func deflated(t testing.TB, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t testing.TB, plain []byte, options ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(plain, nil)
}

// plainFile hides everything of a file but File.
type plainFile struct{ io.ReaderAt }

func (f plainFile) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (f plainFile) Sync() error                        { return nil }
func (f plainFile) Size() (int64, error)               { return f.ReaderAt.(File).Size() }
