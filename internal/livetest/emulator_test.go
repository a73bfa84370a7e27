package livetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/qmp"
	"github.com/qbackup/qbackup/internal/testtool"
)

// newEmulator makes empty disks and starts a whole emulator with them, each with an
// I/O thread. It has no operating system; its guest writes with the monitor's qemu-io.
func newEmulator(h *host, name string, sizeBytes ...int64) *machine {
	h.t.Helper()
	testtool.Need(h.t, "qemu-img")
	m := &machine{h: h, name: name, emulated: true}
	m.makeDisks(sizeBytes)
	m.start()
	return m
}

func (m *machine) startEmulator() {
	t := m.h.t
	t.Helper()
	args := []string{"-display", "none", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "64", "-S"}
	if m.runas != "" {
		args = append(args, "-runas", m.runas)
	}
	hands := m.h.path(m.name + ".hands")
	for _, socket := range []string{hands, m.monitor(), m.spare()} { // the last one tells that all listen
		args = append(args, "-qmp", "unix:"+socket+",server=on,wait=off")
	}
	for i, image := range m.images {
		args = append(args,
			"-object", fmt.Sprintf("iothread,id=t%d", i),
			"-blockdev", fmt.Sprintf("driver=qcow2,node-name=d%d,discard=unmap,file.driver=file,file.filename=%s", i, image),
			"-device", fmt.Sprintf("virtio-blk-pci,id=vd%d,drive=d%d,iothread=t%d", i, i, i))
	}
	m.launch("qemu-system-x86_64", args)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	if m.hands, err = qmp.Dial(ctx, hands, qmp.Options{}); err != nil {
		t.Fatal(err)
	}
}

// qemuIO lets the guest do something to a disk.
func (m *machine) qemuIO(disk int, command string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var said string
	line := fmt.Sprintf("qemu-io -d /machine/peripheral/vd%d/virtio-backend \"%s\"", disk, command)
	err := m.hands.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &said)
	if err == nil && (strings.Contains(said, "failed") || strings.Contains(said, "rror")) {
		err = fmt.Errorf("%s: %s", command, said)
	}
	return err
}

func (m *machine) emulate(o *operation, kind int) error {
	if !o.zero {
		return m.qemuIO(o.disk, fmt.Sprintf("write -P %d %d %d", o.pattern(), o.off, o.len))
	}
	if kind == discards {
		if err := m.qemuIO(o.disk, fmt.Sprintf("discard %d %d", o.off, o.len)); err != nil {
			return err
		}
	}
	return m.qemuIO(o.disk, fmt.Sprintf("write -z %d %d", o.off, o.len))
}

func TestEveryPointOfAnEmulatorWithIOThreadsIsOneInstant(t *testing.T) {
	sizes := []int64{8 * mib, 12 * mib}
	m := newEmulator(newHost(t), "vm", sizes...)
	g := newGuest(t, 32, 2, sizes...)
	g.run(m)
	defer g.halt()
	m.backupChecked(g)
	runs := testtool.Count(4, 100)
	for n := range runs {
		if s := m.backupChecked(g); modes(s) != "incremental" {
			t.Fatalf("run %d says %s", n, modes(s))
		}
		m.checkTidy()
	}
	t.Logf("%d incremental runs of 2 disks", runs)
}
