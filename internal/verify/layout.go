package verify

import "github.com/qbackup/qbackup/internal/repo/format"

// Bounds of what Run holds and has in flight.
const (
	defaultWorkers = 8

	// packMemoryBytes bounds the packs that are read at once; at least one is.
	packMemoryBytes = 48 << 20
	// mapMemoryBytes bounds the map objects that are read at once.
	mapMemoryBytes = 48 << 20
	// indexCacheBytes bounds the pack indexes that are kept while maps are walked.
	indexCacheBytes = 24 << 20
	// nodesRemembered bounds each of the two generations of nodes that were looked at. The larger disk of a
	// machine has 262,144 leaves for 16 TiB in blocks of 64 KiB: those of neighbouring points fit. What was
	// forgotten is looked at again.
	nodesRemembered = 1 << 19

	// maxRanges bounds the ranges of disks in a report; Report.RangesOmitted counts the rest.
	maxRanges = 200_000
	// maxRemarks bounds the remarks of one kind.
	maxRemarks = 20
	// maxRunsNamed bounds the runs that one remark names.
	maxRunsNamed = 4

	// verdictFindings is how many packs one verdict names; with keys and problems as long as they get, that many
	// fit into a document.
	verdictFindings = 64
	// verdictAttempts is how many taken numbers are passed over.
	verdictAttempts = 16
	// maxProblemBytes bounds the text of a problem in a verdict.
	maxProblemBytes = 300
)

// The verdict's levels, see format.Verdict.
const (
	levelMaps = "maps"
	levelData = "data"
)

// A finding in a verdict has a key of at most 200 bytes, a problem, which escaping may double, and 100 bytes of JSON. This
// does not compile when too many are put into one document.
const _ = uint(format.MaxDocumentBytes - verdictFindings*(200+2*maxProblemBytes+100) - 4096)
