package linuxguest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// Config says what the guest has and does.
type Config struct {
	// Disks are qcow2 images with a file system each, as MakeDisk makes them. The
	// n-th is block node "dN", device "diskN", with an iothread "ioN" of its own.
	Disks []string
	// MemoryMiB is 256 when it is zero.
	MemoryMiB int
	// Writes is how many files are written to each disk in this run of the guest:
	// without end when it is zero, none when it is negative.
	Writes int
	// NoAgent leaves the guest agent out: its socket is there and nobody answers.
	NoAgent bool
	// Args are further arguments of QEMU, for instance more devices. Disks that are
	// added so are left alone by the guest unless their serial number is like d7.
	Args []string
}

// Guest is a machine that was started.
type Guest struct {
	// Monitor and TestMonitor are the sockets of two QMP monitors, one for the
	// program under test and one for the test. Each serves one client at a time.
	Monitor, TestMonitor string
	// Agent is the socket of the guest agent.
	Agent string

	control   string // the socket of a third monitor, for Start and Stop
	console   string // what the kernel and the script say
	announced string // which files are finished
	said      string // what QEMU says
	process   *exec.Cmd
	ended     chan struct{} // closed when QEMU has ended
}

const (
	// startTimeout, readyTimeout and stopTimeout are many times what an idle
	// machine needs.
	startTimeout = 30 * time.Second
	readyTimeout = 3 * time.Minute
	stopTimeout  = 2 * time.Minute

	pause = 20 * time.Millisecond // between two looks

	// kernelSettings leave out a test of the timer and a watchdog that take a host
	// with much to do for broken hardware, and end QEMU when the kernel panics.
	kernelSettings = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check nowatchdog"
)

// Start starts a guest and returns when QEMU runs, which is before the guest
// is ready. When the test ends, a guest that still runs is killed. Of a test that
// fails the end of the console is logged.
func Start(t testing.TB, config Config) *Guest {
	t.Helper()
	binary := testtool.Need(t, "qemu-system-x86_64")
	image := buildImage(t, config)
	// The folder is not the test's own, whose name can be too long for a socket.
	folder, err := os.MkdirTemp("", "guest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	in := func(name string) string { return filepath.Join(folder, name) }
	g := &Guest{
		Monitor: in("monitor"), TestMonitor: in("test"), Agent: in("agent"), control: in("control"),
		console: in("console"), announced: in("announced"), said: in("qemu"), ended: make(chan struct{}),
	}
	initramfs := in("initramfs")
	if err := os.WriteFile(initramfs, image.initramfs, 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := os.Create(g.said)
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	g.process = exec.Command(binary, g.args(config, image.kernel, initramfs)...)
	g.process.Stdout, g.process.Stderr = said, said
	g.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = g.process.Wait() // ProcessState holds the outcome
		close(g.ended)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the guest said:\n%s", g.Serial())
		}
		g.Kill(t)
	})
	deadline := time.Now().Add(startTimeout)
	for {
		err := execute(g.control, "query-status", nil)
		if err == nil {
			return g
		}
		g.mustGoOn(t, deadline, fmt.Sprintf("its monitor does not answer: %v", err))
	}
}

// args are QEMU's.
func (g *Guest) args(config Config, kernel, initramfs string) []string {
	memoryMiB := config.MemoryMiB
	if memoryMiB == 0 {
		memoryMiB = 256
	}
	args := []string{
		"-machine", "pc,accel=tcg", "-cpu", "max", "-m", strconv.Itoa(memoryMiB), "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs, "-append", kernelSettings,
		"-chardev", "file,id=console,path=" + g.console, "-serial", "chardev:console",
		"-chardev", "file,id=announced,path=" + g.announced, "-serial", "chardev:announced",
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
	}
	// QEMU listens in this order: once the last one answers, the others can be connected to.
	args = append(args, "-chardev", "socket,server=on,wait=off,id=agent,path="+g.Agent)
	for id, path := range []string{g.Monitor, g.TestMonitor, g.control} {
		args = append(args, "-chardev", fmt.Sprintf("socket,server=on,wait=off,id=monitor%d,path=%s", id, path), "-mon", fmt.Sprintf("mode=control,chardev=monitor%d", id))
	}
	for i, path := range config.Disks {
		args = append(args,
			"-object", fmt.Sprintf("iothread,id=io%d", i),
			"-blockdev", fmt.Sprintf("driver=qcow2,node-name=d%d,discard=unmap,file.driver=file,file.filename=%s", i, strings.ReplaceAll(path, ",", ",,")),
			"-device", fmt.Sprintf("virtio-blk-pci,id=disk%d,drive=d%d,serial=d%d,iothread=io%d", i, i, i, i))
	}
	return append(args, config.Args...)
}

// mustGoOn waits a moment, and ends the test when QEMU has ended or the time is over.
func (g *Guest) mustGoOn(t testing.TB, deadline time.Time, trouble string) {
	t.Helper()
	if list := g.Trouble(); len(list) > 0 {
		t.Fatalf("the guest has trouble: %s", strings.Join(list, "\n"))
	}
	select {
	case <-g.ended:
		said, _ := os.ReadFile(g.said)
		t.Fatalf("QEMU has ended (%v): %s", g.process.ProcessState, said)
	case <-time.After(pause):
	}
	if time.Now().After(deadline) {
		t.Fatalf("the guest takes too long: %s", trouble)
	}
}

// WaitReady comes back when all disks are mounted, their writers run, and the
// guest agent was started.
func (g *Guest) WaitReady(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(readyTimeout); !strings.Contains(g.Serial(), "linuxguest: ready"); {
		g.mustGoOn(t, deadline, "it is not ready")
	}
}

// Announced returns the newest number that the guest has announced for the n-th
// disk since it was started: everything about this file is on the disk. It is zero
// when there is none.
func (g *Guest) Announced(t testing.TB, disk int) int {
	t.Helper()
	text, err := os.ReadFile(g.announced)
	if err != nil {
		t.Fatal(err)
	}
	newest := 0
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	for line := range strings.Lines(string(whole)) {
		var on, number int
		if _, err := fmt.Sscanf(line, "d%d %d", &on, &number); err != nil {
			t.Fatalf("the guest announced %q: %v", line, err)
		}
		if on == disk {
			newest = number
		}
	}
	return newest
}

// WaitAnnounced comes back when the guest has announced a number for the n-th disk.
// It fails the test when nothing new is announced for long.
func (g *Guest) WaitAnnounced(t testing.TB, disk, number int) {
	t.Helper()
	deadline, before := time.Now().Add(readyTimeout), 0
	for {
		newest := g.Announced(t, disk)
		if newest >= number {
			return
		}
		if newest > before {
			deadline, before = time.Now().Add(readyTimeout), newest
		}
		g.mustGoOn(t, deadline, fmt.Sprintf("disk %d is at number %d, not yet at %d", disk, newest, number))
	}
}

// serialBytes is how much of the console Serial returns.
const serialBytes = 32 << 10

// Serial returns the end of what the guest said on its console.
func (g *Guest) Serial() string {
	text, _ := os.ReadFile(g.console) // QEMU makes the file when it starts
	return strings.ReplaceAll(string(text[max(0, len(text)-serialBytes):]), "\r", "")
}

// trouble is what the kernel and the script say when a disk does not do its duty.
var trouble = regexp.MustCompile(`(?m)^.*(linuxguest: failed|error, dev vd|I/O error|EXT4-fs error|EXT4-fs warning|Aborting journal|Kernel panic|Oops).*$`)

// Trouble returns the lines of the console that tell of a disk's errors, or of a guest
// that cannot go on.
func (g *Guest) Trouble() []string { return trouble.FindAllString(g.Serial(), -1) }

// Pid is QEMU's.
func (g *Guest) Pid() int { return g.process.Process.Pid }

// Ended is closed when QEMU has ended.
func (g *Guest) Ended() <-chan struct{} { return g.ended }

// Stop presses the power button, once the guest is ready, and waits for QEMU to
// end. The writers finish what they are at, the disks are unmounted, and QEMU saves
// its bitmaps. The test fails when it is not so, or when the guest saw an error on a
// disk.
func (g *Guest) Stop(t testing.TB) {
	t.Helper()
	g.WaitReady(t)
	if err := execute(g.control, "system_powerdown", nil); err != nil {
		t.Fatalf("press the power button: %v", err)
	}
	g.WaitOff(t)
}

// WaitOff waits for a guest that was told to shut down, for instance through its
// agent, as Stop does.
func (g *Guest) WaitOff(t testing.TB) {
	t.Helper()
	select {
	case <-g.ended:
	case <-time.After(stopTimeout):
		t.Fatalf("the guest does not shut down")
	}
	said, _ := os.ReadFile(g.said)
	if !g.process.ProcessState.Success() || !strings.Contains(g.Serial(), "linuxguest: off") {
		t.Errorf("the guest was not shut down cleanly: QEMU ended with %v: %s", g.process.ProcessState, said)
	}
	if list := g.Trouble(); len(list) > 0 {
		t.Errorf("the guest had trouble: %s", strings.Join(list, "\n"))
	}
}

// Kill ends QEMU with SIGKILL, as a crash of the host would. Killing one that has
// ended does nothing.
func (g *Guest) Kill(t testing.TB) {
	t.Helper()
	_ = g.process.Process.Kill() // it may have ended by itself
	<-g.ended
}
