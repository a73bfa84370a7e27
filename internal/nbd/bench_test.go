package nbd

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/testtool"
)

const benchBytes = 1 << 30

// benchServer exports an image of which share is data, in runs of 4 MiB.
func benchServer(b *testing.B, share float64) Address {
	b.Helper()
	path := filepath.Join(folder(b), "d.qcow2")
	testtool.Run(b, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(benchBytes))
	args := []string{"-f", "qcow2", "-t", "unsafe"}
	const run = 4 << 20
	written := 0.0
	for i := range benchBytes / run {
		if written < share*float64(i+1) {
			written++
			args = append(args, "-c", fmt.Sprintf("write -q -P %d %d %d", 1+i%255, i*run, run))
		}
	}
	testtool.Run(b, "qemu-io", append(args, path)...)
	return qemuNBD(b, "-r", "-f", "qcow2", path)
}

// readData reads what is not known to be zero as the upload does: windows of
// 1 MiB, as many at once as there are processors.
func readData(b *testing.B, c *Client) {
	b.Helper()
	windows := make(chan extent.Extent)
	var group sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			p := make([]byte, 1<<20)
			for e := range windows {
				if _, err := c.ReadAt(p[:e.Len], e.Off); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for e, err := range extent.Split(c.Zeros(b.Context(), 0, c.Size()), 1<<20) {
		if err != nil {
			b.Error(err)
		} else if !e.Zero {
			windows <- e
		}
	}
	close(windows)
	group.Wait()
}

// BenchmarkAgainstNbdcopy reads one export by turns with a client of its own and
// with nbdcopy as it is by default. Each time begins before the first connection;
// nbdcopy's includes the start of the program.
func BenchmarkAgainstNbdcopy(b *testing.B) {
	for _, share := range []float64{1, 0.25} {
		b.Run(fmt.Sprintf("data=%v%%", 100*share), func(b *testing.B) {
			at := benchServer(b, share)
			var ours, theirs time.Duration
			for b.Loop() {
				start := time.Now()
				c, err := Dial(b.Context(), at, Options{Contexts: []string{Allocation}})
				if err != nil {
					b.Fatal(err)
				}
				readData(b, c)
				c.Close()
				ours += time.Since(start)

				start = time.Now()
				testtool.Run(b, "nbdcopy", at.uri(""), "null:")
				theirs += time.Since(start)
			}
			rate := func(d time.Duration) float64 { return benchBytes / 1e6 * float64(b.N) / d.Seconds() }
			b.ReportMetric(rate(ours), "ours-MB/s")
			b.ReportMetric(rate(theirs), "nbdcopy-MB/s")
			b.ReportMetric(theirs.Seconds()/ours.Seconds(), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkReadAt reads 1 GiB of data over different numbers of connections and
// of requests in flight.
func BenchmarkReadAt(b *testing.B) {
	at := benchServer(b, 1)
	for _, connections := range []int{1, 2, 4} {
		for _, inFlight := range []int{1, 4, 8, 16} {
			b.Run(fmt.Sprintf("connections=%d/inflight=%d", connections, inFlight), func(b *testing.B) {
				c, err := Dial(b.Context(), at, Options{Connections: connections, InFlight: inFlight, Contexts: []string{Allocation}})
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				b.SetBytes(benchBytes)
				for b.Loop() {
					readData(b, c)
				}
			})
		}
	}
}

// BenchmarkStatus reads replies of 131,072 extents.
func BenchmarkStatus(b *testing.B) {
	const count = 1 << 17
	var descriptors []uint32
	for i := range uint32(count) {
		descriptors = append(descriptors, 65536, i%2*FlagDirty)
	}
	s := &script{size: count << 16, contexts: []string{testContext}, onRequest: func(s *scriptSession, q query) bool {
		if q.command == commandBlockStatus {
			n := min(q.n>>16, count)
			s.put(q.status(chunkDone, firstID, descriptors[:2*n]...))
		}
		return q.command == commandBlockStatus
	}}
	at := s.listen(b)
	c, err := Dial(b.Context(), at, Options{Contexts: []string{testContext}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if _, err := extent.Total(c.Dirty(b.Context(), testContext, 0, c.Size())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/count, "ns/extent")
}
