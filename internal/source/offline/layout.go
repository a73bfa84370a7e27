package offline

import "time"

// QEMU marks what a process does with an image by read locks on single bytes of
// the file: byte 100+i says "I use permission i", byte 200+i says "I do not
// share permission i". From QEMU's block/file-posix.c, "RAW_LOCK_PERM_BASE" and
// "RAW_LOCK_SHARED_BASE"; the permissions from include/block/block-common.h.
const (
	usesRead    = 100 // BLK_PERM_CONSISTENT_READ
	usesWrite   = 101 // BLK_PERM_WRITE
	usesResize  = 103 // BLK_PERM_RESIZE
	deniesRead  = 200
	deniesWrite = 201
	deniesSize  = 203
)

const (
	// pollInterval is how often a cut looks for writers.
	pollInterval = 100 * time.Millisecond
	// settleTime is longer than the steps in which file systems count times:
	// a change that comes later than this after another one has another time.
	settleTime = 25 * time.Millisecond
	// lockAttempts and lockPause bound how long the final phase waits for
	// programs that are only passing by, such as `qemu-img info`.
	lockAttempts = 6
	lockPause    = 40 * time.Millisecond
	// openAttempts is how often a file is opened while folders are renamed.
	openAttempts = 100
	// commitAttempts is how often the edit of an image is tried within a cut.
	commitAttempts = 2
)

// newGranularityBytes is the granularity of the bitmaps that are made here: one
// bit for one block of the repository's default size.
const newGranularityBytes = 64 << 10
