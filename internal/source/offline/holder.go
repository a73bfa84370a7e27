package offline

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/qbackup/qbackup/internal/source"
)

// procFolder is where Linux shows processes.
const procFolder = "/proc"

// identity is what makes two names the same file.
type identity struct{ device, inode uint64 }

// identityOf reads a file's identity from what stat said.
func identityOf(info os.FileInfo) (identity, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{device: uint64(stat.Dev), inode: stat.Ino}, true
}

// heldError makes the error for an image that somebody else has open. self, when
// not nil, is our own descriptor, which is no holder.
func heldError(path string, id identity, self *os.File) error {
	held := &source.HeldError{Path: path}
	for _, h := range holders(procFolder, id, self) {
		held.Pids = append(held.Pids, h.pid)
		held.Commands = append(held.Commands, h.command)
	}
	return held
}

type holder struct {
	pid     int
	command string
}

// holders finds the processes with a descriptor on the file that has a lock of
// ours or QEMU's kind on it. The kernel's list of locks has no process ids for
// locks of open file descriptions; the processes' own lists have. What may not
// be looked at is left out.
func holders(proc string, id identity, self *os.File) []holder {
	folders, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return nil
	}
	own := ""
	if self != nil {
		own = strconv.FormatUint(uint64(self.Fd()), 10)
	}
	var found []holder
	for _, folder := range folders {
		pid, err := strconv.Atoi(filepath.Base(folder))
		if err != nil {
			continue
		}
		skip := ""
		if pid == os.Getpid() {
			skip = own
		}
		if holdsFile(folder, id, skip) {
			found = append(found, holder{pid: pid, command: commandOf(folder)})
		}
	}
	slices.SortFunc(found, func(a, b holder) int { return a.pid - b.pid })
	return found
}

// holdsFile looks through the descriptors of one process. skip is the number of
// a descriptor that does not count.
func holdsFile(folder string, id identity, skip string) bool {
	entries, err := os.ReadDir(filepath.Join(folder, "fd"))
	if err != nil {
		return false
	}
	for _, entry := range entries {
		if entry.Name() == skip {
			continue
		}
		info, err := os.Stat(filepath.Join(folder, "fd", entry.Name()))
		if err != nil {
			continue
		}
		if got, ok := identityOf(info); !ok || got != id {
			continue
		}
		if hasQEMULock(filepath.Join(folder, "fdinfo", entry.Name())) {
			return true
		}
	}
	return false
}

// hasQEMULock reads the lock lines of a descriptor, as in
// "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:123 101 101".
func hasQEMULock(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[0] != "lock:" {
			continue
		}
		first, err := strconv.ParseInt(fields[7], 10, 64)
		if err != nil {
			continue
		}
		if first >= usesRead && first < deniesRead+100 {
			return true
		}
	}
	return false
}

// commandOf gives a process's program, and the name it was started with when it
// is a machine of QEMU.
func commandOf(folder string) string {
	raw, err := os.ReadFile(filepath.Join(folder, "cmdline"))
	if err != nil || len(raw) == 0 {
		name, err := os.ReadFile(filepath.Join(folder, "comm"))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(name))
	}
	args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
	command := filepath.Base(args[0])
	for i, arg := range args {
		if (arg == "-name" || arg == "--name") && i+1 < len(args) {
			return command + " -name " + args[i+1]
		}
	}
	return command
}
