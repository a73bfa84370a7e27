package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

// ghost is a machine in memory: disks with the exact semantics of qcow2 bitmaps,
// and a reset in the steps of the real one, each of which can be the last.
type ghost struct {
	family ident.FamilyID
	disks  []*ghostDisk
	// die, asked before each step of Commit, ends it there.
	die func(step string) bool
	// confirm is what Confirm returns.
	confirm error
	// readers are disks that others read when Commit comes.
	readers map[string]bool
	// freeze, when not nil, is what Freeze returns.
	freeze error
	// extras go with the evidence, consistency with the cuts.
	extras      []source.Extra
	consistency string
	// open counts cuts that have not ended, left those that ended undecided.
	open, left int
}

const ghostGranularity = testBlockBytes

var errDied = errors.New("the process died")

type ghostDisk struct {
	name    string
	content []byte
	bitmaps []ghostBitmap
	hidden  bool
	version int
	err     error
	inode   uint64
	l1      byte // changes when something is allocated
	written []bool
	readErr error
}

type ghostBitmap struct {
	name             string
	dirty            []bool
	recording, inUse bool
}

func newGhostDisk(name string, sizeBytes int, inode uint64) *ghostDisk {
	d := &ghostDisk{name: name, content: make([]byte, sizeBytes), version: 3, inode: inode}
	d.written = make([]bool, d.granules())
	return d
}

func (d *ghostDisk) granules() int {
	return (len(d.content) + ghostGranularity - 1) / ghostGranularity
}

// write is the guest's.
func (d *ghostDisk) write(off int, p []byte) {
	d.writeSilently(off, p)
	for g := off / ghostGranularity; g <= (off+len(p)-1)/ghostGranularity; g++ {
		for i := range d.bitmaps {
			if b := &d.bitmaps[i]; b.recording && !b.inUse && !d.hidden {
				b.dirty[g] = true
			}
		}
		if !d.written[g] {
			d.written[g] = true
			d.l1++
		}
	}
}

// writeSilently is a write that no bitmap sees.
func (d *ghostDisk) writeSilently(off int, p []byte) { copy(d.content[off:], p) }

func (d *ghostDisk) resize(sizeBytes int) {
	d.content = append(d.content, make([]byte, max(sizeBytes-len(d.content), 0))...)[:sizeBytes]
	n := d.granules()
	fit := func(list []bool) []bool { return append(list, make([]bool, max(n-len(list), 0))...)[:n] }
	d.written = fit(d.written)
	for i := range d.bitmaps {
		d.bitmaps[i].dirty = fit(d.bitmaps[i].dirty)
	}
	d.l1++
}

func (d *ghostDisk) clone() *ghostDisk {
	c := *d
	c.content, c.written, c.bitmaps = bytes.Clone(d.content), slices.Clone(d.written), slices.Clone(d.bitmaps)
	for i := range c.bitmaps {
		c.bitmaps[i].dirty = slices.Clone(c.bitmaps[i].dirty)
	}
	return &c
}

func (d *ghostDisk) facts() format.ImageFacts {
	f := "qcow2"
	if d.version == 0 {
		f = "raw"
	}
	return format.ImageFacts{
		Path: "/vm/" + d.name, Format: f, Device: 1, Inode: d.inode, FileBytes: int64(len(d.content)),
		GranularityBytes: ghostGranularity, ActiveL1: format.Hash{d.l1},
		Chain: []format.LayerFacts{{Role: "top", Path: "/vm/" + d.name, Format: f, Device: 1, Inode: d.inode, DiskBytes: int64(len(d.content)), ModifiedNanos: 1, ChangedNanos: 1}},
	}
}

func (d *ghostDisk) ours(family ident.FamilyID) []*ghostBitmap {
	var list []*ghostBitmap
	for i := range d.bitmaps {
		if name, ok := ident.ParseBitmapName(d.bitmaps[i].name); ok && name.Family == family {
			list = append(list, &d.bitmaps[i])
		}
	}
	return list
}

func (g *ghost) disk(name string) *ghostDisk {
	for _, d := range g.disks {
		if d.name == name {
			return d
		}
	}
	return nil
}

// Inspect implements source.Machine.
func (g *ghost) Inspect(context.Context) (source.Evidence, error) {
	e := source.Evidence{Extras: g.extras}
	for _, d := range g.disks {
		v := source.DiskEvidence{Name: d.name, Path: "/vm/" + d.name, Err: d.err}
		if d.err == nil {
			v.Version, v.SizeBytes, v.Facts = d.version, int64(len(d.content)), d.facts()
			v.BitmapsUsable, v.BitmapsPossible = d.version == 3 && !d.hidden, d.version == 3
			if d.hidden {
				v.Why = "an old program wrote"
			}
			for _, b := range d.bitmaps {
				name, ok := ident.ParseBitmapName(b.name)
				w := source.BitmapEvidence{Name: b.name, Family: name, Ours: ok && name.Family == g.family, Recording: b.recording, InUse: b.inUse, GranularityBytes: ghostGranularity, DirtyBytes: -1}
				if w.Ours {
					v.FamilyInLayers = 1
				}
				if w.Usable() {
					w.DirtyBytes = 0
					for _, dirty := range b.dirty {
						if dirty {
							w.DirtyBytes += ghostGranularity
						}
					}
				}
				v.Bitmaps = append(v.Bitmaps, w)
			}
		}
		e.Disks = append(e.Disks, v)
	}
	return e, nil
}

// Freeze implements source.Machine.
func (g *ghost) Freeze(_ context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	if g.freeze != nil {
		return nil, g.freeze
	}
	c := &ghostCut{ghost: g, run: run}
	for _, base := range bases {
		d := g.disk(base.Disk)
		if d == nil || base.Family != g.family {
			return nil, fmt.Errorf("no disk %s of family %s", base.Disk, base.Family)
		}
		c.disks = append(c.disks, &ghostFrozen{disk: d, base: base, content: bytes.Clone(d.content), ranges: d.ranges(base)})
	}
	g.open++
	return c, nil
}

// ranges is what an increment reads, or everything.
func (d *ghostDisk) ranges(base source.Base) []extent.Extent {
	want := make([]bool, d.granules())
	for g := range want {
		want[g] = base.Run.IsZero()
		for _, b := range d.ours(base.Family) {
			want[g] = want[g] || !b.inUse && b.dirty[g]
		}
		for _, e := range base.Extra {
			off, end := int64(g)*ghostGranularity, int64(g+1)*ghostGranularity
			want[g] = want[g] || e.Off < end && e.End() > off
		}
	}
	var list []extent.Extent
	for g, wanted := range want {
		if !wanted {
			continue
		}
		e := extent.Extent{Off: int64(g) * ghostGranularity, Zero: !d.written[g] && bytes.Equal(d.granule(g), make([]byte, len(d.granule(g))))}
		e.Len = int64(len(d.granule(g)))
		list = append(list, e)
	}
	return list
}

func (d *ghostDisk) granule(g int) []byte {
	return d.content[g*ghostGranularity : min((g+1)*ghostGranularity, len(d.content))]
}

type ghostCut struct {
	ghost     *ghost
	run       ident.RunID
	disks     []*ghostFrozen
	confirmed bool
	ended     bool
}

type ghostFrozen struct {
	disk    *ghostDisk
	base    source.Base
	content []byte
	ranges  []extent.Extent
}

func (f *ghostFrozen) Name() string { return f.disk.name }
func (f *ghostFrozen) Size() int64  { return int64(len(f.content)) }
func (f *ghostFrozen) ReadAt(p []byte, off int64) (int, error) {
	if f.disk.readErr != nil {
		return 0, f.disk.readErr
	}
	return bytes.NewReader(f.content).ReadAt(p, off)
}
func (f *ghostFrozen) Extents(context.Context) extent.Seq { return extent.Of(f.ranges...) }
func (f *ghostFrozen) DirtyBytes() int64 {
	if f.base.Run.IsZero() {
		return -1
	}
	n, _ := extent.Total(extent.Of(f.ranges...))
	return n
}

func (c *ghostCut) Disks() []source.Disk {
	var list []source.Disk
	for _, d := range c.disks {
		list = append(list, d)
	}
	return list
}

func (c *ghostCut) Confirm(context.Context) error {
	if c.confirmed || c.ended {
		return errors.New("confirm out of order")
	}
	c.confirmed = c.ghost.confirm == nil
	return c.ghost.confirm
}

func (c *ghostCut) Commit(context.Context) error {
	if !c.confirmed || c.ended {
		return errors.New("commit out of order")
	}
	c.end()
	var left source.NotReset
	for _, f := range c.disks {
		err := error(nil)
		if c.ghost.readers[f.disk.name] {
			err = source.ErrReaders
		} else if !c.reset(f) {
			err = errDied
		}
		if err != nil {
			left.Disks = append(left.Disks, source.DiskNotReset{Disk: f.disk.name, Err: err})
		}
		if errors.Is(err, errDied) {
			break
		}
	}
	if len(left.Disks) > 0 {
		return &left
	}
	return nil
}

func (c *ghostCut) Abort(context.Context) error {
	c.end()
	return nil
}

func (c *ghostCut) Leave(context.Context) error {
	if !c.ended {
		c.ghost.left++
	}
	c.end()
	return nil
}

func (c *ghostCut) Consistency() string {
	return cmp.Or(c.ghost.consistency, format.ConsistencyOffline)
}

func (c *ghostCut) FreezeSeconds() float64 { return 0 }

func (c *ghostCut) end() {
	if !c.ended {
		c.ended = true
		c.ghost.open--
	}
}

// reset is the reset of one disk, false when the process died in it.
func (c *ghostCut) reset(f *ghostFrozen) bool {
	die := func(step string) bool { return c.ghost.die != nil && c.ghost.die(step+" "+f.disk.name) }
	final := ident.BitmapName{Family: c.ghost.family, Stamp: c.run}
	ours := f.disk.ours(c.ghost.family)
	if len(ours) == 1 && ours[0].recording && !ours[0].inUse && !f.disk.hidden {
		b := ours[0]
		if die("tear name") {
			name, _ := ident.ParseBitmapName(b.name)
			torn := name.Stamp
			copy(torn[8:], c.run[8:])
			name.Stamp = torn
			b.name = name.String()
			return false
		}
		b.name = final.String()
		if die("clear bits") {
			return false
		}
		clear(b.dirty)
		return !die("end")
	}
	if die("replace") || len(ours) == 0 && !f.base.AddFamily {
		return f.disk.version != 3
	}
	f.disk.bitmaps = slices.DeleteFunc(f.disk.bitmaps, func(b ghostBitmap) bool {
		name, ok := ident.ParseBitmapName(b.name)
		return f.disk.hidden || ok && name.Family == c.ghost.family
	})
	f.disk.hidden = false
	f.disk.bitmaps = append(f.disk.bitmaps, ghostBitmap{name: final.String(), dirty: make([]bool, f.disk.granules()), recording: true})
	return !die("end")
}

var (
	_ source.Machine = (*ghost)(nil)
	_ source.Cut     = (*ghostCut)(nil)

	_ source.Consistent = (*ghostCut)(nil)
	_ source.Disk       = (*ghostFrozen)(nil)
	_ io.ReaderAt       = (*ghostFrozen)(nil)
)

func TestTheGhostRecordsLikeABitmap(t *testing.T) {
	d := newGhostDisk("vda", 4*ghostGranularity, 1)
	d.bitmaps = []ghostBitmap{
		{name: "a", dirty: make([]bool, 4), recording: true}, {name: "b", dirty: make([]bool, 4)},
		{name: "c", dirty: make([]bool, 4), recording: true, inUse: true},
	}
	d.write(ghostGranularity-1, []byte{1, 2})
	d.writeSilently(3*ghostGranularity, []byte{3})
	if !slices.Equal(d.bitmaps[0].dirty, []bool{true, true, false, false}) || slices.Contains(d.bitmaps[1].dirty, true) || slices.Contains(d.bitmaps[2].dirty, true) {
		t.Fatalf("bitmaps are %+v", d.bitmaps)
	}
}

// slowMachine takes its time to read.
type slowMachine struct{ source.Machine }

func (m slowMachine) Freeze(ctx context.Context, run ident.RunID, bases []source.Base) (source.Cut, error) {
	c, err := m.Machine.Freeze(ctx, run, bases)
	return slowCut{c}, err
}

type slowCut struct{ source.Cut }

func (c slowCut) Disks() []source.Disk {
	var list []source.Disk
	for _, d := range c.Cut.Disks() {
		list = append(list, slowDisk{d})
	}
	return list
}

type slowDisk struct{ source.Disk }

func (d slowDisk) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return d.Disk.ReadAt(p, off)
}
