package bitmapscan

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
)

// benchBytes of bitmap are 4 TiB of disk at the default granularity.
const benchBytes = 8 << 20

// density sets about a share of the bits, in runs of the given length.
func density(share float64, run int) []byte {
	r := rand.New(rand.NewPCG(11, 13))
	b := make([]byte, benchBytes)
	if share == 1 {
		return bytes.Repeat([]byte{0xff}, benchBytes)
	}
	chance := share / float64(run)
	for bit := 0; bit < benchBytes*8; bit++ {
		if r.Float64() < chance {
			for end := min(bit+run, benchBytes*8); bit < end; bit++ {
				b[bit/8] |= 1 << (bit % 8)
			}
		}
	}
	return b
}

var densities = []struct {
	name  string
	share float64
	run   int
}{
	{"none", 0, 1},
	{"0.1%_in_runs_of_16", 0.001, 16},
	{"1%_in_runs_of_16", 0.01, 16},
	{"10%_in_runs_of_16", 0.1, 16},
	{"10%_random", 0.1, 1},
	{"50%_random", 0.5, 1},
	{"all", 1, 1},
}

func benchBitmap(share float64, run int) *Bitmap {
	const cluster = 65536
	b := &Bitmap{GranularityBytes: 65536, ClusterBytes: cluster, SizeBytes: benchBytes * 8 * 65536}
	for i := range int64(benchBytes / cluster) {
		b.Table = append(b.Table, uint64((i+1)*cluster))
	}
	b.Data = bytes.NewReader(append(make([]byte, cluster), density(share, run)...))
	return b
}

// report adds how long a TiB of disk takes.
func report(b *testing.B, sizeBytes int64) {
	tib := float64(sizeBytes) / (1 << 40) * float64(b.N)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/tib, "ns/TiB")
}

func BenchmarkExtents(b *testing.B) {
	for _, d := range densities {
		b.Run(d.name, func(b *testing.B) {
			bitmap := benchBitmap(d.share, d.run)
			b.SetBytes(benchBytes)
			for b.Loop() {
				n := 0
				for _, err := range bitmap.Extents(b.Context()) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			report(b, bitmap.SizeBytes)
		})
	}
}

func BenchmarkCount(b *testing.B) {
	bitmap := benchBitmap(0.5, 1)
	b.SetBytes(benchBytes)
	for b.Loop() {
		if _, err := bitmap.Count(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	report(b, bitmap.SizeBytes)
}

// BenchmarkEdges is the part of BenchmarkExtents that looks at bits.
func BenchmarkEdges(b *testing.B) {
	for _, d := range densities {
		b.Run(d.name, func(b *testing.B) {
			bits := density(d.share, d.run)
			slots := new([edgeSlots]uint32)
			b.SetBytes(benchBytes)
			for b.Loop() {
				for words := bits; len(words) > 0; words = words[edgeBytes:] {
					edges(slots, words[:edgeBytes], 0)
				}
			}
		})
	}
}

// BenchmarkTable is a disk of 16 TiB of which nothing, or all, is dirty.
func BenchmarkTable(b *testing.B) {
	for _, entry := range []uint64{0, entryAllDirty} {
		b.Run(fmt.Sprintf("entry_%d", entry), func(b *testing.B) {
			bitmap := &Bitmap{GranularityBytes: 65536, ClusterBytes: 65536, SizeBytes: 16 << 40}
			bitmap.Table = make([]uint64, TableEntries(bitmap.SizeBytes, 65536, 65536))
			for i := range bitmap.Table {
				bitmap.Table[i] = entry
			}
			for b.Loop() {
				if _, err := extent.Total(bitmap.Extents(b.Context())); err != nil {
					b.Fatal(err)
				}
			}
			report(b, bitmap.SizeBytes)
		})
	}
}
