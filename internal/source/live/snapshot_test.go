package live

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/source/scratch"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestASnapshotJustBeforeThePointInTimeEndsTheRun(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	over := filepath.Join(d.dir, "over.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", a, "-F", "qcow2", over)
	d.start(blockdev(a))
	d.must("blockdev-add", map[string]any{"driver": "qcow2", "node-name": "over", "backing": nil, "file": map[string]any{"driver": "file", "filename": over}})
	snapshot := map[string]any{"node": "d0", "overlay": "over"}
	m := d.machine()
	d.inspect(m)
	s, err := m.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &cut{machine: m, session: s, run: testRun(2)}
	defer c.Abort(context.WithoutCancel(t.Context()))
	if err := s.lock(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if err := c.choose(t.Context(), m, []source.Base{{Disk: "a", Family: testFamily, AddFamily: true}}); err != nil {
		t.Fatal(err)
	}
	d.must("blockdev-snapshot", snapshot) // after the look, before the scratch image
	if c.space, err = scratch.Open(m.options.ScratchDir, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.prepare(t.Context(), testFamily); err != nil {
		t.Fatal(err)
	}
	if err := c.settle(t.Context(), m.options); !errors.Is(err, source.ErrChanged) {
		t.Errorf("%v", err)
	}
}

func TestDuringACutNoSnapshotCanBeTaken(t *testing.T) {
	d := newDaemon(t)
	a := d.image("a.qcow2")
	over := filepath.Join(d.dir, "over.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", a, "-F", "qcow2", over)
	d.start(blockdev(a))
	d.must("blockdev-add", map[string]any{"driver": "qcow2", "node-name": "over", "backing": nil, "file": map[string]any{"driver": "file", "filename": over}})
	c := d.freeze(d.machine(), 2, source.Base{AddFamily: true})
	snapshot := map[string]any{"node": "d0", "overlay": "over"}
	if err := d.ask("blockdev-snapshot", snapshot, nil); err == nil {
		t.Error("QEMU took it")
	}
	if err := c.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.must("blockdev-snapshot", snapshot)
}
