package upload

import (
	"iter"
	"sync/atomic"
	"time"
)

// DiskStats counts what Run does for one disk, in bytes of the disk unless said otherwise. The caller owns it, hands
// it in with the Job, and may read it at any time: progress bars, summaries and metrics all read the same one.
type DiskStats struct {
	Total   atomic.Int64 // bytes that will pass, 0 while unknown; set by the caller for progress bars
	Passed  atomic.Int64 // bytes of the extents that are dealt with, read or not
	Read    atomic.Int64 // bytes read from the disk
	Zero    atomic.Int64 // bytes that are zero, whether read or known to be so
	Skipped atomic.Int64 // bytes read that equal what the base holds
	Changed atomic.Int64 // bytes read that were packed
	Stored  atomic.Int64 // compressed bytes of those, as they lie in packs
}

// PipelineStats shows how busy a Run's stages are. The caller owns it and may read it at any time.
type PipelineStats struct {
	// Queued is how many pieces have been handed out and are not yet in a pack.
	Queued atomic.Int64
	// BufferBytes is the size of the buffers that were made.
	BufferBytes atomic.Int64

	read, compress, put busy
}

// busy sums up, over all workers of a stage, the nanoseconds that they worked.
type busy struct{ nanos atomic.Int64 }

// work counts from now until done is called.
func (b *busy) work() (done func()) {
	start := time.Now()
	return func() { b.nanos.Add(int64(time.Since(start))) }
}

// Busy gives each stage and how many nanoseconds its workers worked, all together.
func (s *PipelineStats) Busy() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		_ = yield("read", s.read.nanos.Load()) && yield("compress", s.compress.nanos.Load()) && yield("put", s.put.nanos.Load())
	}
}
