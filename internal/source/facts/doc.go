// Package facts describes the files that a disk is made of, in the words that a
// record keeps: the next run compares them with what it finds, and so learns that
// a file was replaced, moved or written to behind its back (I3).
//
// The same file gives the same facts whether a machine runs on it or not, so that
// a machine may be backed up in either state from one day to the next. What only
// holds for a machine that is off, its L1 table and the times of what it writes,
// is left to those who know that it is.
//
// All functions may be called from several goroutines. Nothing is written.
package facts
