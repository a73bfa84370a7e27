// Package qcow2 reads QEMU's qcow2 images, and edits their bitmaps. It is the
// only code that writes into an image.
//
// Reading. ReadHeader and ParseHeader read the header; Image maps ranges of the
// disk to places in one image file; Disk is what a guest sees: an image with its
// data file and its backing files, as an io.ReaderAt and as a stream of extents.
// Versions 2 and 3, clusters of 512 B to 2 MiB, standard and extended L2
// entries, and both compression types are read. QEMU's limits and refusals hold,
// and some more: an image that is marked corrupt or dirty is not read as a disk
// (Header.CheckTrust), tables and clusters must lie inside the file, reserved
// bits of table entries must be clear, and one L2 table serves one L1 entry.
// Images may be hostile: every error names structure and offset, memory is
// bounded by the limits in layout.go and by the caller's cache budget, and no
// file that an image names is opened except through the caller's Opener. The
// format of a file is never guessed.
//
// Writing. Editor adds, removes, renames and empties bitmaps in an image; Create
// writes a fresh image. What is written, in which order, and what a crash leaves
// is in docs/format/qcow2.md.
//
// It leaves to others: locks and the question whether a guest is running, the
// choice of which files may be opened, what a bitmap is good for.
//
// Concurrency: Image and Disk are safe for parallel use, and start no
// goroutines. They describe the file as it was when they were opened; after an
// edit, or when a guest has written, they must be opened anew. An Editor is not
// safe for parallel use; Writer.WriteAt is.
//
// Serves I2, I5 and I6: nothing is reported zero that may hold data, damage is an
// error and never zeros, reading writes nothing, and no crash in the middle of an
// edit does harm.
package qcow2
