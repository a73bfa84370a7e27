// Package state keeps what one host remembers between runs: a lock per
// machine, a journal of the last run per machine, the identity of each machine,
// the last verdict on what a repository's provider can do, and for people and
// metrics how its backups ended.
//
// It leaves truth to the repository. Every file here is a small JSON document;
// a lost or damaged one is reported, treated as absent, and costs re-reading
// only. What the files hold serves two purposes: to know that an earlier run of
// this host is dead (I2, I7: nothing is decided about a run that may live), and
// to notice that a repository or an image went back in time (I3).
//
// Files are written to a temporary name in the same folder, synced, renamed,
// and the folder is synced, so a crash leaves the old file or the new one.
// Folders have mode 0700 and files 0600.
//
// All methods are safe for parallel use by several processes as far as the
// rename is atomic; a caller that reads, decides and writes for one machine
// holds that machine's lock meanwhile.
package state
