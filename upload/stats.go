package upload

import "sync/atomic"

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
