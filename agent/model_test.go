package agent

import (
	"flag"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/testtool"
)

// The model: a machine of two disks of a few blocks, whose contents are version
// numbers; a repository that is a map; and runs that die at any step. Whatever
// happens, every point must equal what the disks held at its point in time.
// ChooseBase is the only part of the product in it.

const (
	modelDisks  = 2
	modelBlocks = 4
)

type modelContent [modelBlocks]int

type modelBitmap struct {
	name             ident.BitmapName
	dirty            [modelBlocks]bool
	recording, inUse bool
}

// modelImage is one image file: what a copy of the file copies.
type modelImage struct {
	content modelContent
	bitmaps []modelBitmap
	hidden  bool // autoclear bit unset
}

func (i modelImage) clone() modelImage {
	i.bitmaps = slices.Clone(i.bitmaps)
	return i
}

type modelRun struct {
	state    StampState
	captured [modelDisks]bool
	base     [modelDisks]ident.RunID
	content  [modelDisks]modelContent
	truth    [modelDisks]modelContent
}

// modelVariant names ways to work; only the first is right.
type modelVariant int

const (
	variantProduct      modelVariant = iota // one switch of the directory empties a family of several bitmaps
	variantKeepsOldLink                     // restarts the recording one, and removes the frozen ones later
	variantTrustsNewest                     // takes the newest point for the base of whatever bitmap there is
)

type model struct {
	t       *rapid.T
	variant modelVariant
	images  [modelDisks]modelImage
	saved   *[modelDisks]modelImage
	repo    map[ident.RunID]*modelRun
	order   []ident.RunID // of the committed, as they landed
	pending map[ident.RunID]*modelRun
	local   ident.RunID // the journal's last run
	version int
	runs    uint32
	hits    map[string]int
}

func newModel(t *rapid.T, variant modelVariant, hits map[string]int) *model {
	return &model{t: t, variant: variant, repo: map[ident.RunID]*modelRun{}, pending: map[ident.RunID]*modelRun{}, hits: hits}
}

func (m *model) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"":         func(*rapid.T) { m.check() },
		"write":    func(*rapid.T) { m.write() },
		"write2":   func(*rapid.T) { m.write() },
		"offline":  func(*rapid.T) { m.run(false) },
		"offline2": func(*rapid.T) { m.run(false) },
		"live":     func(*rapid.T) { m.run(true) },
		"disaster": func(*rapid.T) { m.disaster() },
	}
}

func (m *model) write() {
	disk := rapid.IntRange(0, modelDisks-1).Draw(m.t, "disk")
	block := rapid.IntRange(0, modelBlocks-1).Draw(m.t, "block")
	m.version++
	image := &m.images[disk]
	image.content[block] = m.version
	for i := range image.bitmaps {
		// A writer that does not know bitmaps hides them, one that does records.
		if b := &image.bitmaps[i]; b.recording && !b.inUse && !image.hidden {
			b.dirty[block] = true
		}
	}
}

// disaster is one thing that goes wrong outside of a run.
func (m *model) disaster() {
	disk := rapid.IntRange(0, modelDisks-1).Draw(m.t, "disk")
	image := &m.images[disk]
	switch rapid.SampledFrom([]string{
		"copy", "roll back", "roll back one disk", "power cut", "old program", "lose newest", "forget oldest", "forget newest",
		"remove bitmap", "late lands", "late is lost", "damage newest",
	}).Draw(m.t, "disaster") {
	case "copy":
		saved := [modelDisks]modelImage{m.images[0].clone(), m.images[1].clone()}
		m.saved = &saved
	case "roll back":
		if m.saved != nil {
			m.images = [modelDisks]modelImage{m.saved[0].clone(), m.saved[1].clone()}
			m.hits["rolled back"]++
		}
	case "roll back one disk":
		if m.saved != nil {
			m.images[disk] = m.saved[disk].clone()
		}
	case "power cut":
		for i := range image.bitmaps {
			image.bitmaps[i].inUse = true
		}
	case "old program":
		image.hidden = true
	case "lose newest":
		if n := len(m.order); n > 0 {
			delete(m.repo, m.order[n-1])
			m.order = m.order[:n-1]
		}
	case "forget oldest":
		if len(m.order) > 0 {
			m.drop(0, StampForgotten)
		}
	case "forget newest":
		if len(m.order) > 0 {
			m.drop(len(m.order)-1, StampForgotten)
		}
	case "damage newest":
		if len(m.order) > 0 {
			m.drop(len(m.order)-1, StampDamaged)
		}
	case "remove bitmap":
		if n := len(image.bitmaps); n > 0 {
			i := rapid.IntRange(0, n-1).Draw(m.t, "bitmap")
			image.bitmaps = slices.Delete(image.bitmaps, i, i+1)
		}
	case "late lands":
		for _, run := range sortedRuns(m.pending) {
			m.land(run, m.pending[run])
			m.hits["landed late"]++
		}
	case "late is lost":
		clear(m.pending)
	}
}

func (m *model) drop(i int, state StampState) {
	m.repo[m.order[i]].state = state
	m.order = slices.Delete(m.order, i, i+1)
}

func sortedRuns(runs map[ident.RunID]*modelRun) []ident.RunID {
	var list []ident.RunID
	for run := range runs {
		list = append(list, run)
	}
	slices.SortFunc(list, ident.RunID.Compare)
	return list
}

// land stores a record, create-only: a slot that says ABORT stays.
func (m *model) land(run ident.RunID, r *modelRun) bool {
	delete(m.pending, run)
	if m.repo[run] != nil {
		return false
	}
	m.repo[run] = r
	m.order = append(m.order, run)
	return true
}

// choose asks the product.
func (m *model) choose(disk int) Decision {
	image := m.images[disk]
	in := BaseInput{
		Disk: fmt.Sprint("disk", disk), Family: testFamily, Version: 3, BitmapsUsable: !image.hidden, BitmapsPossible: true,
		SizeBytes: modelBlocks * testBlockBytes, BlockBytes: testBlockBytes, FamilyInLayers: 1,
		Stamps: map[ident.RunID]Stamp{}, Bases: map[ident.RunID]ident.RunID{}, Local: []ident.RunID{m.local},
	}
	for _, b := range image.bitmaps {
		v := Bitmap{Name: b.name, Recording: b.recording, InUse: b.inUse}
		for _, d := range b.dirty {
			if d {
				v.DirtyBytes += testBlockBytes
			}
		}
		in.Bitmaps = append(in.Bitmaps, v)
		in.Stamps[b.name.Stamp] = Stamp{}
	}
	for run, r := range m.repo {
		s := Stamp{State: r.state, BlockBytes: testBlockBytes}
		if r.captured[disk] {
			s.Disk = &format.DiskRecord{Mode: format.ModeFull, SizeBytes: in.SizeBytes}
			in.Bases[run] = r.base[disk]
		}
		in.Stamps[run] = s
	}
	in.Newest = m.newest(disk)
	return ChooseBase(in)
}

func (m *model) newest(disk int) ident.RunID {
	for _, run := range slices.Backward(m.order) {
		if m.repo[run].captured[disk] {
			return run
		}
	}
	return ident.RunID{}
}

// run is one backup that may die before any of its steps.
func (m *model) run(live bool) {
	m.runs++
	run := ident.RunID{3: byte(m.runs), 2: byte(m.runs >> 8), 6: 0x70, 8: 0x80}
	dies := rapid.IntRange(0, 12).Draw(m.t, "dies before step")
	if m.local != (ident.RunID{}) && m.repo[m.local] == nil && m.pending[m.local] != nil {
		// The successor of a dead local run takes its slot.
		delete(m.pending, m.local)
		m.repo[m.local] = &modelRun{state: StampDead}
	}
	r := &modelRun{state: StampCommitted}
	for disk := range m.images {
		if rapid.IntRange(0, 9).Draw(m.t, "missing") == 0 {
			continue // this disk cannot be read this time
		}
		m.capture(disk, r)
	}
	if !r.captured[0] && !r.captured[1] {
		return
	}
	m.local = run
	step := 0
	alive := func() bool { step++; return step != dies }
	if live {
		m.freeze(run, r)
	}
	if !alive() {
		return
	}
	if rapid.IntRange(0, 5).Draw(m.t, "ambiguous") == 0 {
		m.pending[run] = r
		return
	}
	if !m.land(run, r) || !alive() {
		return
	}
	m.commitImages(run, r, live, alive)
}

// capture computes one disk of a point, as upload would.
func (m *model) capture(disk int, r *modelRun) {
	image := m.images[disk]
	d := m.choose(disk)
	if !d.Busy.IsZero() {
		m.t.Fatalf("busy with %s", d.Busy)
	}
	r.captured[disk], r.base[disk] = true, d.Base
	r.content[disk], r.truth[disk] = image.content, image.content
	m.hits[d.Mode]++
	for _, a := range d.Alarms {
		m.hits[string(a.Kind)]++
	}
	if d.Base.IsZero() {
		m.hits[string(d.Reason)]++
		return
	}
	if m.variant == variantTrustsNewest {
		r.base[disk] = m.newest(disk)
	}
	r.content[disk] = m.repo[r.base[disk]].content[disk]
	for _, b := range image.bitmaps {
		for block, dirty := range b.dirty {
			if dirty {
				r.content[disk][block] = image.content[block]
			}
		}
	}
	if len(image.bitmaps) > 1 {
		m.hits["union"]++
	}
}

// freeze is the one transaction of a live run: a new bitmap on, all of ours off.
func (m *model) freeze(run ident.RunID, r *modelRun) {
	for disk := range m.images {
		if !r.captured[disk] {
			continue
		}
		image := &m.images[disk]
		name := ident.BitmapName{Family: testFamily, Stamp: run}
		if image.hidden {
			image.bitmaps, image.hidden = nil, false
		}
		for i := range image.bitmaps {
			if b := &image.bitmaps[i]; b.recording && !b.inUse {
				b.recording, name.Prev = false, b.name.Stamp
			}
		}
		image.bitmaps = append(image.bitmaps, modelBitmap{name: name, recording: true})
	}
}

// commitImages forgets the bits, disk after disk; false means it died.
func (m *model) commitImages(run ident.RunID, r *modelRun, live bool, alive func() bool) bool {
	for disk := range m.images {
		if !r.captured[disk] {
			continue
		}
		if rapid.IntRange(0, 9).Draw(m.t, "readers in the way") == 0 {
			continue
		}
		image := &m.images[disk]
		switch {
		case live:
			image.bitmaps = slices.DeleteFunc(image.bitmaps, func(b modelBitmap) bool { return b.name.Stamp != run })
		case len(image.bitmaps) == 1 && image.bitmaps[0].recording && !image.bitmaps[0].inUse && !image.hidden || m.variant == variantKeepsOldLink:
			if !m.restart(image, run, alive) {
				return false
			}
		default:
			image.bitmaps = []modelBitmap{{name: ident.BitmapName{Family: testFamily, Stamp: run}, recording: true}}
			image.hidden = false
		}
		if !alive() {
			return false
		}
	}
	return true
}

// restart resets the recording bitmap in place: its stamp first (which may be
// torn), then its bits, then its link, then what else there is of the family.
func (m *model) restart(image *modelImage, run ident.RunID, alive func() bool) bool {
	i := slices.IndexFunc(image.bitmaps, func(b modelBitmap) bool { return b.recording && !b.inUse })
	if i < 0 || image.hidden {
		image.bitmaps = []modelBitmap{{name: ident.BitmapName{Family: testFamily, Stamp: run}, recording: true}}
		image.hidden = false
		return true
	}
	b := &image.bitmaps[i]
	b.name.Stamp[0], b.name.Stamp[3] = 0xee, run[3]
	if !alive() {
		m.hits["torn name"]++
		return false
	}
	b.name.Stamp = run
	if !alive() {
		return false
	}
	b.dirty = [modelBlocks]bool{}
	if !alive() {
		return false
	}
	b.name.Prev = ident.RunID{}
	image.bitmaps = []modelBitmap{*b}
	return true
}

func (m *model) check() {
	for run, r := range m.repo {
		if r.state != StampCommitted {
			continue
		}
		for disk := range r.captured {
			if r.captured[disk] && r.content[disk] != r.truth[disk] {
				m.t.Fatalf("point %s, disk %d: holds %v, the disk held %v", run, disk, r.content[disk], r.truth[disk])
			}
		}
	}
}

// fixRapid pins rapid to a seed and a count; it has flags only.
func fixRapid(t testing.TB, checks int) {
	t.Helper()
	for name, value := range map[string]string{
		"rapid.seed": "20261122", "rapid.checks": fmt.Sprint(checks), "rapid.steps": "40", "rapid.nofailfile": "true", "rapid.shrinktime": "0s",
	} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEveryPointIsTrueWhateverHappensBetweenAndDuringRuns(t *testing.T) {
	fixRapid(t, testtool.Count(1_000, 100_000))
	hits := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(rt, variantProduct, hits)
		rt.Repeat(m.actions())
	})
	// A model that never meets a case proves nothing about it.
	for _, want := range []string{
		format.ModeFull, format.ModeIncremental, format.ModeRescan, "union", "torn name", "rolled back", "landed late",
		string(ReasonFirst), string(ReasonNoBitmap), string(ReasonOnlyFrozen), string(ReasonLinkMissing), string(ReasonInUse),
		string(ReasonAutoclear), string(ReasonUnknownStamp), string(ReasonFailedRun), string(ReasonForgotten), string(ReasonBaseDamaged),
		string(AlarmRepositoryRolledBack), string(AlarmImageRolledBack),
	} {
		if hits[want] == 0 {
			t.Errorf("the model never met %q", want)
		}
	}
	t.Logf("met: %v", hits)
}

// The model must be able to see a wrong order of effects, else it shows nothing.
func TestTheModelFindsWrongWays(t *testing.T) {
	fixRapid(t, testtool.Count(3_000, 50_000))
	for name, variant := range map[string]modelVariant{"the old link is kept": variantKeepsOldLink, "the newest point is the base": variantTrustsNewest} {
		t.Run(name, func(t *testing.T) {
			var judge judge
			rapid.Check(&judge, func(rt *rapid.T) {
				m := newModel(rt, variant, map[string]int{})
				rt.Repeat(m.actions())
			})
			if !judge.failed {
				t.Fatal("no wrong point was found")
			}
		})
	}
}

// judge takes the place of a test that is expected to fail.
type judge struct {
	testing.TB
	failed bool
}

func (j *judge) Helper()               {}
func (j *judge) Name() string          { return "judge" }
func (j *judge) Logf(string, ...any)   {}
func (j *judge) Log(...any)            {}
func (j *judge) Skipf(string, ...any)  {}
func (j *judge) Skip(...any)           {}
func (j *judge) SkipNow()              {}
func (j *judge) Errorf(string, ...any) { j.failed = true }
func (j *judge) Error(...any)          { j.failed = true }
func (j *judge) Fatalf(string, ...any) { j.failed = true }
func (j *judge) Fatal(...any)          { j.failed = true }
func (j *judge) FailNow()              { j.failed = true }
func (j *judge) Fail()                 { j.failed = true }
func (j *judge) Failed() bool          { return j.failed }
