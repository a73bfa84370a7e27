package qcow2

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/qbackup/qbackup/internal/testtool"
)

const benchBytes = 512 << 20

// benchImage is an image with 512 MiB of data in the page cache.
func benchImage(b *testing.B, options ...string) string {
	b.Helper()
	path := createImage(b, fmt.Sprint(benchBytes), options...)
	testtool.Run(b, "qemu-io", "-f", "qcow2", "-t", "unsafe", "-c", fmt.Sprintf("write -q -P 7 0 %d", benchBytes/2), "-c", fmt.Sprintf("write -q -P 9 %d %d", benchBytes/2, benchBytes/2), path)
	return path
}

// readWhole reads with several goroutines, each taking the next piece.
func readWhole(b *testing.B, r io.ReaderAt, goroutines int, piece int64) {
	b.Helper()
	b.SetBytes(benchBytes)
	for b.Loop() {
		var next atomic.Int64
		var group sync.WaitGroup
		for range goroutines {
			group.Go(func() {
				p := make([]byte, piece)
				for {
					off := next.Add(piece) - piece
					if off >= benchBytes {
						return
					}
					if _, err := r.ReadAt(p, off); err != nil && err != io.EOF {
						b.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
	}
}

func BenchmarkReadAt(b *testing.B) {
	for _, c := range []struct {
		name    string
		options []string
	}{
		{"64k", []string{"cluster_size=64k"}},
		{"512", []string{"cluster_size=512"}},
		{"extended", []string{"extended_l2=on"}},
	} {
		path := benchImage(b, c.options...)
		d := openTestDisk(b, path, DiskOptions{})
		raw, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		defer raw.Close()
		for goroutines := 1; goroutines <= 2; goroutines++ {
			for _, piece := range []int64{64 << 10, 1 << 20} {
				suffix := fmt.Sprintf("%s/goroutines=%d/piece=%dKiB", c.name, goroutines, piece>>10)
				b.Run("disk/"+suffix, func(b *testing.B) { readWhole(b, d, goroutines, piece) })
				b.Run("pread/"+suffix, func(b *testing.B) { readWhole(b, raw, goroutines, piece) })
			}
		}
	}
}

// BenchmarkMap maps whole disks: an empty one of 16 TiB, and one of 1 TiB in
// which every cluster is allocated.
func BenchmarkMap(b *testing.B) {
	count := func(b *testing.B, f File) {
		m, err := OpenImage(f, ImageOptions{})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			for _, err := range m.Mappings(b.Context(), 0, m.Size()) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("empty16TiB", func(b *testing.B) {
		count(b, openFile(b, createImage(b, "16T")))
	})
	b.Run("allocated1TiB", func(b *testing.B) {
		// The file is sparse.
		count(b, openFile(b, createImage(b, "1T", "preallocation=metadata")))
	})
}
