package state

import "time"

// The folder of a state directory looks like this, with <repository> the 32 hex
// characters of the repository's id and <machine> the operator's name for it:
//
//	repositories/<repository>/probe.json
//	repositories/<repository>/machines/<machine>.json
//	repositories/<repository>/machines/<machine>.lock
//	results/<place>/overall.json                        what prunes and all requests to the store came to
//	results/<place>/machines/<machine>.json             how the machine's backups ended
//	cache/                                              only when asked for
//	run/                                                only when asked for
//	scratch/                                            what QEMU keeps while a running machine is backed up
//	guards/                                             what guards have to undo, see package guard
const (
	repositoriesFolder = "repositories"
	machinesFolder     = "machines"
	probeFile          = "probe.json"
	journalSuffix      = ".json"
	lockSuffix         = ".lock"
	resultsFolder      = "results"
	overallFile        = "overall.json"
	resultsLock        = "lock"
	cacheFolder        = "cache"
	runtimeFolder      = "run"
	scratchFolder      = "scratch"

	folderMode = 0o700
	passedMode = 0o711 // of root's state directory
	fileMode   = 0o600

	// fileVersion is raised when an older program would misread a file. A file
	// with another version counts as absent.
	fileVersion = 1

	// fileBytesMax bounds what is read back. A journal with a thousand disks
	// stays far below it.
	fileBytesMax = 4 << 20

	// holderRetries and holderPause bound how long a refused lock waits for its
	// holder to write down who it is: the holder locks first and writes after.
	holderRetries = 5
	holderPause   = 20 * time.Millisecond
)
