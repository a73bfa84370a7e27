package linuxguest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qbackup/qbackup/internal/testtool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ask runs a command of the guest agent over a connection of its own.
func ask(t *testing.T, g *Guest, command string) json.RawMessage {
	t.Helper()
	conn, err := net.Dial("unix", g.Agent)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "{\"execute\":%q}\n", command); err != nil {
		t.Fatal(err)
	}
	if command == "guest-shutdown" {
		return nil // it answers with the machine's end
	}
	var answer struct{ Return, Error json.RawMessage }
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	if answer.Error != nil {
		t.Fatalf("%s: %s", command, answer.Error)
	}
	return answer.Return
}

// rawCopies reads disks that nobody writes to, although QEMU may have them open.
func rawCopies(t *testing.T, disks []string) []string {
	t.Helper()
	var list []string
	for i, disk := range disks {
		raw := filepath.Join(t.TempDir(), fmt.Sprintf("d%d.raw", i))
		testtool.Run(t, "qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", disk, raw)
		list = append(list, raw)
	}
	return list
}

func TestAGuestIsFrozenKilledStartedAgainAndShutDown(t *testing.T) {
	folder := t.TempDir()
	disks := []string{filepath.Join(folder, "a, b.qcow2"), filepath.Join(folder, "b.qcow2")}
	for _, disk := range disks {
		MakeDisk(t, disk, 64<<20)
	}

	started := time.Now()
	g := Start(t, Config{Disks: disks})
	g.WaitReady(t)
	t.Logf("ready after %v", time.Since(started).Round(time.Millisecond))
	for i := range disks {
		g.WaitAnnounced(t, i, testtool.Count(42, 300)) // more than there are slots
	}
	t.Logf("%d and %d files after %v", g.Announced(t, 0), g.Announced(t, 1), time.Since(started).Round(time.Millisecond))

	for range testtool.Count(2, 20) {
		frozenDisksAreClean(t, g, disks)
	}

	g.Kill(t)
	for i, raw := range rawCopies(t, disks) {
		announced := g.Announced(t, i)
		if c := CheckDisk(t, raw, false); c.Newest < announced || c.Newest > announced+1 {
			t.Errorf("killed disk %d: %+v, announced %d", i, c, announced)
		}
	}

	lasts := []int{g.Announced(t, 0), g.Announced(t, 1)}
	g = Start(t, Config{Disks: disks})
	if err := execute(g.TestMonitor, "block-dirty-bitmap-add", map[string]any{"node": "d0", "name": "recorded", "persistent": true}); err != nil {
		t.Fatal(err)
	}
	for i, last := range lasts {
		g.WaitAnnounced(t, i, last+3)
	}
	g.Stop(t)
	if info := testtool.Run(t, "qemu-img", "info", disks[0]); !strings.Contains(info, "name: recorded") || strings.Contains(info, "in-use") {
		t.Errorf("the bitmap was not saved:\n%s", info)
	}
	stopped := rawCopies(t, disks)
	for i, raw := range stopped {
		if c := CheckDisk(t, raw, true); c.Newest != g.Announced(t, i) {
			t.Errorf("disk %d of a guest that is off: %+v, announced %d", i, c, g.Announced(t, i))
		}
	}

	last, more := g.Announced(t, 1), testtool.Count(8, 80)
	g = Start(t, Config{Disks: disks[1:], Writes: more})
	g.WaitAnnounced(t, 0, last+more)
	ask(t, g, "guest-shutdown") // waits for the agent, which may start after the writers
	g.WaitOff(t)
	if n := g.Announced(t, 0); n != last+more {
		t.Errorf("it was to write %d files after number %d, the last is %d", more, last, n)
	}
	aBlockThatIsOldIsFoundOut(t, stopped[1], rawCopies(t, disks[1:])[0])
}

// frozenDisksAreClean freezes the guest, looks at its disks, thaws it and waits until it
// writes again.
func frozenDisksAreClean(t *testing.T, g *Guest, disks []string) {
	t.Helper()
	if n := ask(t, g, "guest-fsfreeze-freeze"); string(n) != "2" {
		t.Errorf("frozen: %s file systems, want 2", n)
	}
	for i, raw := range rawCopies(t, disks) {
		announced := g.Announced(t, i)
		if c := CheckDisk(t, raw, true); c.Newest < announced || c.Newest > announced+1 || c.Files < window || c.Bytes == 0 {
			t.Errorf("frozen disk %d: %+v, announced %d", i, c, announced)
		}
	}
	if n := ask(t, g, "guest-fsfreeze-thaw"); string(n) != "2" {
		t.Errorf("thawed: %s file systems, want 2", n)
	}
	for i := range disks {
		g.WaitAnnounced(t, i, g.Announced(t, i)+3)
	}
}

// aBlockThatIsOldIsFoundOut puts blocks of an older copy into a younger one, one at a
// time, as a backup would that has missed a write. Of a guest that was off this may
// pass only in the journal, where no file is, and in the folder, whose entries can be
// the same again.
func aBlockThatIsOldIsFoundOut(t *testing.T, old, young string) {
	t.Helper()
	newest := CheckDisk(t, young, true).Newest
	const blockBytes, clusterBytes = 64 << 10, 4096
	harmless := regexp.MustCompile(`\t(8|12|<block not found>)$`) // the inodes of journal and folder
	was, is := read(t, old), read(t, young)
	var differ []int
	for at := 0; at < len(is); at += blockBytes {
		if !bytes.Equal(was[at:at+blockBytes], is[at:at+blockBytes]) {
			differ = append(differ, at)
		}
	}
	raw := filepath.Join(t.TempDir(), "raw")
	step, found := max(1, len(differ)/testtool.Count(15, 1000)), 0
	for i := 0; i < len(differ); i += step {
		at := differ[i]
		mixed := bytes.Clone(is)
		copy(mixed[at:at+blockBytes], was[at:])
		write(t, raw, mixed)
		var c Contents
		r := recordTest(t, func(t testing.TB) { c = CheckDisk(t, raw, true) })
		if len(r.said) > 0 || c.Newest < newest {
			found++
			continue
		}
		var numbers []string
		for b := at; b < at+blockBytes; b += clusterBytes {
			if !bytes.Equal(was[b:b+clusterBytes], is[b:b+clusterBytes]) {
				numbers = append(numbers, fmt.Sprint(b/clusterBytes))
			}
		}
		used := strings.Split(strings.TrimSpace(testtool.Run(t, "debugfs", "-R", "icheck "+strings.Join(numbers, " "), young)), "\n")
		for _, line := range used[len(used)-len(numbers):] {
			if !harmless.MatchString(line) {
				t.Errorf("the old block at %d was not found out; block and inode: %s", at, line)
				break
			}
		}
	}
	t.Logf("of %d blocks that differ %d were made old one by one, %d of them were found out", len(differ), (len(differ)+step-1)/step, found)
	if found == 0 {
		t.Error("no old block was found out")
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAGuestWhoseDiskFailsIsFoundOut(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "d.qcow2")
	MakeDisk(t, disk, 64<<20)
	g := Start(t, Config{Disks: []string{disk}, NoAgent: true})
	g.WaitReady(t)
	if list := g.Trouble(); len(list) != 0 {
		t.Errorf("trouble before there is any: %q", list)
	}
	// The file system ends behind the disk from now on.
	if err := execute(g.TestMonitor, "block_resize", map[string]any{"node-name": "d0", "size": 1 << 20}); err != nil {
		t.Fatal(err)
	}
	r := recordTest(t, func(t testing.TB) { g.WaitAnnounced(t, 0, 1<<20) })
	if len(r.said) != 1 || !strings.Contains(r.said[0], "trouble") {
		t.Errorf("it says %q", r.said)
	}
	<-g.Ended()
	r = recordTest(t, func(t testing.TB) { g.WaitOff(t) })
	if len(r.said) != 2 || !strings.Contains(r.said[0], "not shut down cleanly") || !strings.Contains(r.said[1], "had trouble") {
		t.Errorf("it says %q", r.said)
	}
	t.Logf("%s", strings.Join(g.Trouble(), "\n"))
}

func TestAMachineThatCannotStartSaysWhy(t *testing.T) {
	r := recordTest(t, func(t testing.TB) { Start(t, Config{Disks: []string{filepath.Join(t.TempDir(), "missing")}}) })
	if len(r.said) != 1 || !strings.Contains(r.said[0], "missing") || !strings.Contains(r.said[0], "exit status 1") {
		t.Errorf("it says %q", r.said)
	}
}
