package virt_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/linuxguest"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/testtool"
)

// guestTime is many times what an idle machine needs to start the guest.
const guestTime = 4 * time.Minute

// realGuest backs up a Linux whose file systems are frozen for the point in time.
func realGuest(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "linux")
	kernel, initramfs, arguments := linuxguest.Boot(t, w.dir, linuxguest.Config{})
	w.os = fmt.Sprintf("<kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline>", kernel, initramfs, arguments)
	console := filepath.Join(w.dir, "console")
	w.devices = fmt.Sprintf(`<serial type='file'><source path='%s'/><target port='0'/></serial><serial type='file'><source path='%s'/><target port='1'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`, console, filepath.Join(w.dir, "announced"))
	w.memoryMiB = 256
	for i, d := range w.disks {
		d.serial = fmt.Sprintf("d%d", i)
		linuxguest.MakeDisk(t, d.path, 32<<20)
	}
	w.define()
	w.start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s\nQEMU:\n%s", w.read(console), w.read(l.Dir("log/qemu/"+w.domain+".log")))
		}
	})
	w.await("the guest to be ready", func() bool {
		text, _ := os.ReadFile(console)
		ready, troubles := linuxguest.Ready(string(text))
		if len(troubles) > 0 {
			t.Fatalf("the guest has trouble: %q", troubles)
		}
		return ready
	})
	w.await("the agent to answer", func() bool { _, err := l.Try("domfsinfo", w.domain); return err == nil })

	var notes []string
	w.change = func(o *virt.Options) {
		o.Freeze, o.FreezeRequired = true, true
		o.Budget = time.Minute // the host may have much to do
		o.Note = func(text string) { notes = append(notes, text) }
	}
	newest := 0
	for n := range testtool.Count(2, 10) {
		s, err := w.backup()
		if err != nil {
			t.Fatal(err)
		}
		if s.Consistency != format.ConsistencyFrozen || s.FreezeSeconds <= 0 || n > 0 && s.Disks[1].Mode != incremental {
			t.Fatalf("point %d: %+v", n, s)
		}
		t.Logf("frozen for %.3f s", s.FreezeSeconds)
		for _, d := range w.disks {
			c := linuxguest.CheckDisk(t, w.restore(s.Point, d.target), true)
			if d.target == "vda" {
				if c.Newest <= newest {
					t.Errorf("point %d: the newest file is %d, it was %d before", n, c.Newest, newest)
				}
				newest = c.Newest
			}
		}
	}
	if len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	// A run that dies takes no QEMU with it, although its disk has an I/O thread.
	w.dieInARun("guarded")
	w.await("the guard to end the job", func() bool { return !strings.Contains(l.Virsh(t, "domjobinfo", w.domain), "Backup") })
	if s, err := w.backup(); err != nil || s.Disks[1].Mode != incremental {
		t.Fatalf("%+v, %v", s, err)
	}
	if state := l.Virsh(t, "domstate", w.domain); state != "running" {
		t.Errorf("afterwards it is %s", state)
	}
	if out := l.Virsh(t, "qemu-agent-command", w.domain, `{"execute":"guest-fsfreeze-status"}`); out != `{"return":"thawed"}` {
		t.Errorf("afterwards: %s", out)
	}
	_, troubles := linuxguest.Ready(w.read(console))
	if len(troubles) > 0 {
		t.Errorf("the guest has trouble: %q", troubles)
	}
}

// await waits for something that is a matter of time.
func (w *world) await(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(guestTime); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited too long for %s", what)
		}
	}
}

func (w *world) read(path string) string {
	w.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// restore writes a disk of a point to a raw file.
func (w *world) restore(run ident.RunID, disk string) string {
	w.t.Helper()
	name, _ := virt.MachineName(w.domain)
	point, err := w.repository.OpenPoint(w.t.Context(), name, run)
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := point.Disk(disk)
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.t.TempDir(), disk+".raw")
	f, err := os.Create(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, io.NewSectionReader(d, 0, d.Size())); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func noAgent(t *testing.T, l *testtool.Libvirtd) {
	w := newWorld(t, l, "no-agent")
	w.define()
	w.start()
	var notes []string
	w.change = func(o *virt.Options) {
		o.Freeze = true
		o.Note = func(text string) { notes = append(notes, text) }
	}
	if s := w.mustBackup(full, full); s.Consistency != format.ConsistencyCrash || len(notes) != 1 || !strings.Contains(notes[0], "agent is not configured") {
		t.Errorf("%s, notes %q", s.Consistency, notes)
	}
	required := w.change
	w.change = func(o *virt.Options) { required(o); o.FreezeRequired = true }
	if _, err := w.backup(); !errors.Is(err, virt.ErrNotFrozen) || !errors.Is(err, source.ErrUnusable) || !strings.Contains(err.Error(), "qemu-guest-agent") {
		t.Errorf("error %v", err)
	}
	l.Virsh(t, "suspend", w.domain)
	if _, err := w.backup(); !errors.Is(err, virt.ErrNotFrozen) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("error %v", err)
	}
	w.wantNothingLeft()
	w.change = nil
	w.mustBackup(incremental, incremental)
}
