package repo

// Bounds of what this package holds in memory and has in flight. The caches stay
// under 100 MiB together whatever the size of a disk; the largest bound is for the
// manifests of full backups of very large disks, 2 MiB per TiB of data.
const (
	// DefaultNodeCacheBytes bounds the map nodes that are kept.
	DefaultNodeCacheBytes = 16 << 20
	windowCacheBytes      = 8 << 20
	indexMemoryBytes      = 24 << 20
	manifestMemoryBytes   = 40 << 20
	frameCacheBytes       = 8 << 20

	// nodeWindowBytes is the aligned part of a map object that is fetched at once:
	// the nodes that one run changed lie together.
	nodeWindowBytes = 256 << 10
	// fetchBytes bounds one range GET of frames.
	fetchBytes = 4 << 20
	// gapBytes is what is read and thrown away rather than making another request.
	gapBytes = 32 << 10
	// readFetches bounds the requests that one ReadAt has in flight.
	readFetches = 4
	// listReads bounds the small documents that one listing reads in parallel.
	listReads = 16

	// mapObjectBytes is the size at which a map object is closed.
	mapObjectBytes = 16 << 20
	// publishAttempts bounds how often a record is sent; retries of one request
	// are the store's.
	publishAttempts = 4
)
