package linuxguest

import (
	"bytes"
	"fmt"
)

// The types of entries, as in stat(2).
const (
	modeFolder = 0o040755
	modeFile   = 0o100755
)

// archive is a cpio archive in the "newc" form, which the kernel unpacks as its
// first file system: per entry a header of hexadecimal numbers, the name with a
// zero byte, the contents, each padded to 4 bytes (the kernel's
// driver-api/early-userspace/buffer-format).
type archive struct {
	bytes.Buffer
	entries int
}

// add appends an entry; folders come before what is in them.
func (a *archive) add(name string, mode int, contents []byte) {
	a.entries++
	a.WriteString("070701")
	for _, field := range []int{
		a.entries, mode, 0, 0, // inode, mode, uid, gid
		1, 0, len(contents), // links, time, bytes
		0, 0, 0, 0, // devices
		len(name) + 1, 0, // bytes of the name, checksum
	} {
		fmt.Fprintf(a, "%08x", field)
	}
	a.WriteString(name)
	a.WriteByte(0)
	a.pad()
	a.Write(contents)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

// finish appends the end mark and returns the archive.
func (a *archive) finish() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes()
}
