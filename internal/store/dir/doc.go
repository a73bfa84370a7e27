// Package dir keeps a store in a local folder: the key is the path.
//
// It leaves to others retries and the meaning of keys. Every object is a file of
// mode 0600 that appears complete or not at all. Put has these effects, in this
// order, each through the FS seam:
//
//	Mkdir    each missing folder on the way, mode 0700      } once per folder
//	SyncDir  the folder above each folder on the way        } and Store
//	Create   a temporary file in the folder of the object
//	Write    all bytes, in order, in one or more calls
//	Sync     the temporary file
//	Close
//	Link     temporary name -> final name; fails when that exists
//	Remove   the temporary name
//	SyncDir  the folder of the object
//
// A cut before Link leaves no object; a cut after it leaves the whole object or,
// when power fails before the last SyncDir, perhaps none. Before it says
// ErrExists, Put also syncs the folder, so that an object of a writer that died
// after Link is durable before anybody relies on it (I1).
//
// A file without name (O_TMPFILE) was rejected because network file systems lack
// it. A rename that replaces was rejected because it can destroy an object (I4).
//
// Names of temporary files begin with a dot, which no key does, so List, Get and
// Stat never show them. A writer that was killed leaves at most one for each Put
// that ran. Delete removes those it meets in the folders of its keys, and Sweep
// those in all folders, when they are older than a day; writers never do, because
// the clock of a file server may be wrong and a backup needs no rights to delete.
// Folders are never removed, so no writer can lose the folder under its feet.
//
// Concurrency: a Store is safe for parallel use, by any number of processes on
// one folder.
package dir
