package dir

import "time"

const (
	folderMode = 0o700
	fileMode   = 0o600

	// tempPrefix begins the names of temporary files; 26 random characters
	// follow. The leading dot keeps them apart from all keys.
	tempPrefix = ".tmp-"

	// staleAge is the age after which a temporary file counts as left over by a
	// writer that died: no Put of one object takes a day.
	staleAge = 24 * time.Hour

	// writeBytes is the most that one Write passes on, so that a context that
	// ends is noticed between two of them.
	writeBytes = 4 << 20

	// dropBytes is the size from which on a file that was synced leaves the page
	// cache.
	dropBytes = 1 << 20
)
