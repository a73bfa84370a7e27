package qmp

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peer is who the kernel says is behind a unix socket: the process that began to
// listen, and its user at that time. The zero value is nobody.
type peer struct{ cred *unix.Ucred }

func peerOf(conn net.Conn) peer {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return peer{}
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return peer{}
	}
	var cred *unix.Ucred
	failed := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if failed != nil || err != nil {
		return peer{}
	}
	return peer{cred}
}

// uid is the user that the process opens files as, -1 when that is not known. QEMU's
// -runas takes effect after it began to listen, so the process itself is asked when it
// can be seen.
func (p peer) uid() int {
	if p.cred == nil {
		return -1
	}
	if p.cred.Pid > 0 {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cred.Pid))
		if uid, ok := fileSystemUID(string(text)); err == nil && ok {
			return uid
		}
	}
	return int(p.cred.Uid)
}

func (p peer) pid() int {
	if p.cred == nil {
		return 0
	}
	return int(p.cred.Pid)
}

// fileSystemUID finds the user whose rights count when a process opens files: the last
// of the four on the line "Uid:" of its status.
func fileSystemUID(status string) (int, bool) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			fields := strings.Fields(rest)
			if len(fields) != 4 {
				return 0, false
			}
			uid, err := strconv.Atoi(fields[3])
			return uid, err == nil && uid >= 0
		}
	}
	return 0, false
}
