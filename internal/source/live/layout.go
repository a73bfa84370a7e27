package live

import (
	"fmt"
	"strings"
	"time"
)

// Names of what we make in a QEMU. QEMU allows letters, digits, '-', '.' and '_',
// and 31 bytes for a node.
const (
	namePrefix  = "qb1-"
	frozenName  = namePrefix + "cut" // the frozen bits, on the scratch node
	scratchNode = namePrefix + "scratch-"
	fileNode    = namePrefix + "file-"
	jobPrefix   = namePrefix + "job-"
	exportName  = namePrefix + "disk-"
	endName     = namePrefix + "end-" // of a descriptor
)

// ours tells whether a name is one that we gave.
func ours(name string) bool { return strings.HasPrefix(name, namePrefix) }

func numbered(prefix string, i int) string { return fmt.Sprintf("%s%d", prefix, i) }

const (
	// newGranularityBytes is the granularity of the bitmaps that are made here: one
	// bit for one block of the repository's default size.
	newGranularityBytes = 64 << 10

	// jobInterval is how often the jobs are looked at.
	jobInterval = time.Second

	// endTime is how long after the end of one socket of a QEMU that of its monitor is
	// waited for.
	endTime = time.Second

	// commandTime bounds one QMP command, teardownTime everything that a cut does
	// at its end, and lockTime how long another run's cleaning up is waited for.
	commandTime  = 30 * time.Second
	teardownTime = 2 * time.Minute
	lockTime     = 15 * time.Second

	// socketPathMax is the longest path of a Unix socket.
	socketPathMax = 107
)
