// Package ident holds the identifiers that every room of qbackup shares: runs,
// machines, families and the bitmap names made of them.
//
// It leaves to others what an identifier stands for: which runs exist is asked
// of the repository, which bitmaps exist is asked of the image. All types are
// values of fixed width, compare with ==, and are safe to use from several
// goroutines.
//
// It serves I3: a bitmap's name says which point it continues, and a name that
// is not exactly of our form is nobody's claim.
package ident
