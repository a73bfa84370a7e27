package agent

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source/facts"
)

const testBlockBytes = 64 << 10

var testFamily = ident.FamilyID{1, 2, 3, 4}

// runN is a run id that says its number.
func runN(n byte) ident.RunID { return ident.RunID{0: n, 6: 0x70, 8: 0x80} }

func bitmapN(stamp, prev byte, recording bool) Bitmap {
	b := Bitmap{Name: ident.BitmapName{Family: testFamily, Stamp: runN(stamp)}, Recording: recording, DirtyBytes: testBlockBytes}
	if prev != 0 {
		b.Name.Prev = runN(prev)
	}
	return b
}

func testFacts() format.ImageFacts {
	return format.ImageFacts{
		Path: "/vm/a.qcow2", Format: "qcow2", Device: 1, Inode: 2, ActiveL1: format.Hash{1},
		Chain: []format.LayerFacts{
			{Role: facts.RoleTop, Path: "/vm/a.qcow2", Format: "qcow2", Device: 1, Inode: 2, FileBytes: 10, ModifiedNanos: 5, ChangedNanos: 5, Backing: "b.qcow2", Header: format.Hash{1}},
			{Role: facts.RoleData, Path: "/vm/a.data", Format: "raw", Device: 1, Inode: 3, FileBytes: 10, ModifiedNanos: 5, ChangedNanos: 5},
			{Role: "backing", Path: "/vm/b.qcow2", Format: "qcow2", Device: 1, Inode: 4, FileBytes: 10, DiskBytes: 9, ModifiedNanos: 5, ChangedNanos: 5, Header: format.Hash{2}},
		},
	}
}

func committed(base byte) Stamp {
	d := &format.DiskRecord{Name: "vda", Mode: format.ModeIncremental, SizeBytes: 10 * testBlockBytes, Image: testFacts()}
	if base != 0 {
		d.Base = runN(base)
	}
	return Stamp{State: StampCommitted, Disk: d, BlockBytes: testBlockBytes}
}

// goodInput is a disk whose only bitmap continues the newest point, run 5.
func goodInput() BaseInput {
	return BaseInput{
		Disk: "vda", Family: testFamily, Version: 3, BitmapsUsable: true, BitmapsPossible: true,
		Bitmaps: []Bitmap{bitmapN(5, 0, true)}, FamilyInLayers: 1,
		SizeBytes: 10 * testBlockBytes, BlockBytes: testBlockBytes, Facts: testFacts(),
		Stamps: map[ident.RunID]Stamp{runN(5): committed(4)},
		Bases:  map[ident.RunID]ident.RunID{runN(5): runN(4), runN(4): runN(3)},
		Newest: runN(5), Local: []ident.RunID{runN(5)},
	}
}

// frozenBy5 is what a live run 6 leaves behind: 5 frozen, 6 recording.
func frozenBy6(state StampState) func(*BaseInput) {
	return func(in *BaseInput) {
		in.Bitmaps = []Bitmap{bitmapN(5, 0, false), bitmapN(6, 5, true)}
		s := Stamp{State: state}
		if state == StampCommitted {
			s = committed(5)
			in.Bases[runN(6)] = runN(5)
			in.Newest, in.Local = runN(6), []ident.RunID{runN(6)}
		}
		in.Stamps[runN(6)] = s
	}
}

// restored makes the image one that a restore of run 5 made: one file, of another
// geometry, with an empty bitmap.
func restored(in *BaseInput) {
	in.Bitmaps[0].Name.Prev, in.Bitmaps[0].DirtyBytes = runN(5), 0
	in.Facts.Inode, in.Facts.ActiveL1 = 99, format.Hash{9}
	in.Facts.Chain = []format.LayerFacts{{Role: facts.RoleTop, Path: "/vm/r.qcow2", Format: "qcow2", Device: 1, Inode: 99, ModifiedNanos: 9, ChangedNanos: 9, Header: format.Hash{9}}}
}

func TestEveryRuleOfTheBase(t *testing.T) {
	type want struct {
		mode   string
		reason Reason
		base   byte
		alarm  AlarmKind
	}
	increment := func(base byte) want { return want{mode: format.ModeIncremental, base: base} }
	rescan := func(r Reason) want { return want{mode: format.ModeRescan, reason: r} }
	full := func(r Reason) want { return want{mode: format.ModeFull, reason: r} }
	alarm := func(w want, k AlarmKind) want { w.alarm = k; return w }
	state := func(s StampState) func(*BaseInput) {
		return func(in *BaseInput) { in.Stamps[runN(5)] = Stamp{State: s} }
	}
	none := func(in *BaseInput) { in.Bitmaps, in.FamilyInLayers = nil, 0 }

	for _, c := range []struct {
		name   string
		change func(*BaseInput)
		want   want
	}{
		// The rule itself.
		{"a recording bitmap of the newest point", func(*BaseInput) {}, increment(5)},
		{"a foreign family beside ours is ignored", func(in *BaseInput) {
			b := bitmapN(7, 0, true)
			b.Name.Family = ident.FamilyID{9}
			b.InUse = true
			in.Bitmaps = append(in.Bitmaps, b)
		}, increment(5)},
		{"a foreign family alone is no bitmap", func(in *BaseInput) { in.Bitmaps[0].Name.Family = ident.FamilyID{9} }, rescan(ReasonNoBitmap)},
		{"frozen, and its successor's run committed", frozenBy6(StampCommitted), increment(6)},
		{"frozen, and its successor's run is dead", frozenBy6(StampDead), increment(5)},
		{"frozen, and its successor's point was forgotten", frozenBy6(StampForgotten), increment(5)},
		{"frozen, and its successor's point is damaged", frozenBy6(StampDamaged), increment(5)},
		{"frozen, and its successor is unknown", frozenBy6(StampUnknown), alarm(increment(5), AlarmRepositoryRolledBack)},
		{"frozen, and its successor's run lacks this disk", func(in *BaseInput) {
			frozenBy6(StampCommitted)(in)
			in.Stamps[runN(6)] = Stamp{State: StampCommitted, BlockBytes: testBlockBytes}
			in.Newest = runN(5)
		}, increment(5)},
		{"a chain of two failed runs", func(in *BaseInput) {
			in.Bitmaps = []Bitmap{bitmapN(5, 0, false), bitmapN(6, 5, false), bitmapN(7, 6, true)}
			in.Stamps[runN(6)], in.Stamps[runN(7)] = Stamp{State: StampDead}, Stamp{State: StampDead}
		}, increment(5)},
		{"the successor's bitmap is in use", func(in *BaseInput) {
			frozenBy6(StampDead)(in)
			in.Bitmaps[1].InUse = true
		}, rescan(ReasonInUse)},
		{"an older checkpoint in use does no harm when the newest records by itself", func(in *BaseInput) {
			old := bitmapN(4, 0, false)
			old.InUse = true
			in.Bitmaps = append(in.Bitmaps, old)
			in.Stamps[runN(4)] = committed(3)
		}, increment(5)},
		{"two candidates: the descendant", func(in *BaseInput) {
			in.Bitmaps = []Bitmap{bitmapN(9, 0, true), bitmapN(5, 0, true)}
			in.Stamps[runN(9)] = committed(0)
			in.Bases[runN(5)] = runN(8)
			in.Bases[runN(8)] = runN(9)
		}, increment(5)},
		{"two candidates without known descent: the later", func(in *BaseInput) {
			in.Bitmaps = []Bitmap{bitmapN(5, 0, true), bitmapN(3, 0, true)}
			in.Stamps[runN(3)] = committed(0)
			in.Bases = map[ident.RunID]ident.RunID{runN(5): runN(4)}
		}, increment(5)},
		{"records in a circle end the walk", func(in *BaseInput) {
			in.Bitmaps = []Bitmap{bitmapN(5, 0, true), bitmapN(3, 0, true)}
			in.Stamps[runN(3)] = committed(5)
			in.Bases = map[ident.RunID]ident.RunID{runN(5): runN(4), runN(4): runN(5), runN(3): runN(5)}
			in.Newest, in.Local = runN(3), nil
		}, increment(3)},
		{"links in a circle lead nowhere", func(in *BaseInput) {
			in.Bitmaps = []Bitmap{bitmapN(5, 6, false), bitmapN(6, 5, false)}
			in.Stamps[runN(6)] = Stamp{State: StampDead}
		}, rescan(ReasonOnlyFrozen)},

		// No candidate, and why.
		{"the first backup", func(in *BaseInput) {
			none(in)
			in.Stamps, in.Bases, in.Newest, in.Local = nil, nil, ident.RunID{}, nil
		}, full(ReasonFirst)},
		{"no bitmap", none, rescan(ReasonNoBitmap)},
		{"no bitmap and no readable point", func(in *BaseInput) { none(in); in.Newest = ident.RunID{} }, full(ReasonNoBitmap)},
		{"only a frozen bitmap", func(in *BaseInput) { in.Bitmaps[0].Recording = false }, rescan(ReasonOnlyFrozen)},
		{"a link missing", func(in *BaseInput) {
			in.Bitmaps = []Bitmap{bitmapN(5, 0, false), bitmapN(7, 6, true)}
			in.Stamps[runN(7)] = Stamp{State: StampDead}
		}, rescan(ReasonLinkMissing)},
		{"in use after a crash", func(in *BaseInput) { in.Bitmaps[0].InUse = true }, rescan(ReasonInUse)},
		{"unknown flags", func(in *BaseInput) { in.Bitmaps[0].Problem = "flag 3" }, rescan(ReasonUnknownFlags)},
		{"a frozen one whose successor has unknown flags", func(in *BaseInput) {
			frozenBy6(StampDead)(in)
			in.Bitmaps[1].Problem = "flag 3"
		}, rescan(ReasonUnknownFlags)},
		{"autoclear bit unset", func(in *BaseInput) { in.BitmapsUsable, in.WhyNot = false, "an old program wrote" }, rescan(ReasonAutoclear)},
		{"a directory that cannot be read", func(in *BaseInput) { none(in); in.BitmapsUsable, in.WhyNot = false, "entry 0" }, rescan(ReasonUnreadable)},
		{"unknown stamp", state(StampUnknown), alarm(rescan(ReasonUnknownStamp), AlarmRepositoryRolledBack)},
		{"unknown stamp in an empty repository", func(in *BaseInput) {
			state(StampUnknown)(in)
			in.Newest, in.Bases = ident.RunID{}, nil
		}, alarm(full(ReasonUnknownStamp), AlarmRepositoryRolledBack)},
		{"forgotten", state(StampForgotten), rescan(ReasonForgotten)},
		{"a failed run only", state(StampDead), rescan(ReasonFailedRun)},
		{"the base's record is damaged", state(StampDamaged), rescan(ReasonBaseDamaged)},
		{"the base lists the disk as missing", func(in *BaseInput) { in.Stamps[runN(5)].Disk.Mode = format.ModeMissing }, rescan(ReasonNotCaptured)},
		{"the base does not list the disk", func(in *BaseInput) {
			in.Stamps[runN(5)] = Stamp{State: StampCommitted, BlockBytes: testBlockBytes}
		}, rescan(ReasonNotCaptured)},
		{"raw", func(in *BaseInput) { none(in); in.Version = 0 }, rescan(ReasonRaw)},
		{"version 2", func(in *BaseInput) { none(in); in.Version = 2 }, rescan(ReasonVersion2)},
		{"asked for", func(in *BaseInput) { in.Rescan = true }, rescan(ReasonAsked)},
		{"this run's sample found a lie", func(in *BaseInput) { in.Quarantine = ReasonSample }, rescan(ReasonSample)},

		// Evidence against a sound bitmap.
		{"the disk shrank", func(in *BaseInput) { in.SizeBytes-- }, rescan(ReasonShrank)},
		{"the disk grew", func(in *BaseInput) { in.SizeBytes++; in.Facts.ActiveL1 = format.Hash{7}; in.Bitmaps[0].DirtyBytes = 0 }, increment(5)},
		{"another block size", func(in *BaseInput) { in.BlockBytes *= 2 }, rescan(ReasonBlockSize)},
		{"a family in two layers that the base did not have", func(in *BaseInput) {
			in.FamilyInLayers = 2
			in.Facts.Chain = append(in.Facts.Chain, format.LayerFacts{Role: "backing", ChangedNanos: 5})
		}, rescan(ReasonTwoLayers)},
		{"a family in two layers, and the lower one was written to", func(in *BaseInput) {
			in.FamilyInLayers = 2
			in.Facts.Chain[2].ChangedNanos++
		}, rescan(ReasonTwoLayers)},
		{"a family in two layers, the lower one a block device", func(in *BaseInput) {
			in.FamilyInLayers = 2
			for _, f := range []format.ImageFacts{in.Facts, in.Stamps[runN(5)].Disk.Image} {
				f.Chain[2].ModifiedNanos, f.Chain[2].ChangedNanos = 0, 0
			}
		}, rescan(ReasonTwoLayers)},
		{"a family in two layers, as the base found it", func(in *BaseInput) { in.FamilyInLayers = 2 }, increment(5)},
		{"a restored image, whatever the one was that the point was read from", func(in *BaseInput) { restored(in) }, increment(5)},
		{"a restored image of a disk that was raw", func(in *BaseInput) {
			restored(in)
			in.Stamps[runN(5)].Disk.Image.Format = "raw"
		}, increment(5)},
		{"a restored image on which an overlay was put", func(in *BaseInput) {
			restored(in)
			in.Facts.Chain = append(in.Facts.Chain, format.LayerFacts{Role: "backing"})
		}, rescan(ReasonChainChanged)},
		{"a restored image that was given a backing file", func(in *BaseInput) {
			restored(in)
			in.Facts.Chain[0].Backing = "b.qcow2"
		}, rescan(ReasonChainChanged)},
		{"a restored image that shrank", func(in *BaseInput) { restored(in); in.SizeBytes-- }, rescan(ReasonShrank)},
		{"another format", func(in *BaseInput) { in.Facts.Format = "raw" }, rescan(ReasonChainChanged)},
		{"a layer more", func(in *BaseInput) { in.Facts.Chain = append(in.Facts.Chain, format.LayerFacts{Role: "backing"}) }, rescan(ReasonChainChanged)},
		{"layers in another order", func(in *BaseInput) {
			in.Facts.Chain[1], in.Facts.Chain[2] = in.Facts.Chain[2], in.Facts.Chain[1]
		}, rescan(ReasonChainChanged)},
		{"the top's header differs", func(in *BaseInput) { in.Facts.Chain[0].Header = format.Hash{9} }, rescan(ReasonChainChanged)},
		{"the top names another backing file", func(in *BaseInput) { in.Facts.Chain[0].Backing = "c.qcow2" }, rescan(ReasonChainChanged)},
		{"the top was written and grew", func(in *BaseInput) {
			in.Facts.Chain[0].ModifiedNanos++
			in.Facts.Chain[0].FileBytes++
			in.Facts.ActiveL1 = format.Hash{7}
		}, increment(5)},
		{"the backing file was modified", func(in *BaseInput) { in.Facts.Chain[2].ModifiedNanos++ }, rescan(ReasonChainChanged)},
		{"the backing file's inode changed in time only", func(in *BaseInput) { in.Facts.Chain[2].ChangedNanos++ }, rescan(ReasonChainChanged)},
		{"the backing file has another size", func(in *BaseInput) { in.Facts.Chain[2].FileBytes++ }, rescan(ReasonChainChanged)},
		{"the backing file is another", func(in *BaseInput) { in.Facts.Chain[2].Inode++ }, rescan(ReasonChainChanged)},
		{"the host restarted and numbers its devices anew", func(in *BaseInput) { in.Facts.Chain[2].Device++ }, increment(5)},
		{"the data file is another", func(in *BaseInput) { in.Facts.Chain[1].Inode++ }, rescan(ReasonDataFile)},
		{"the data file was written, with bits", func(in *BaseInput) { in.Facts.Chain[1].ModifiedNanos++ }, increment(5)},
		{"the data file was written, with an unknown count of bits", func(in *BaseInput) {
			in.Facts.Chain[1].ModifiedNanos++
			in.Bitmaps[0].DirtyBytes = -1
		}, increment(5)},
		{"the data file was written without a bit", func(in *BaseInput) {
			in.Facts.Chain[1].ModifiedNanos++
			in.Bitmaps[0].DirtyBytes = 0
		}, alarm(rescan(ReasonNoBits), AlarmNoBits)},
		{"clusters were allocated without a bit", func(in *BaseInput) {
			in.Facts.ActiveL1 = format.Hash{7}
			in.Bitmaps[0].DirtyBytes = 0
		}, alarm(rescan(ReasonActiveL1), AlarmNoBits)},
		{"nothing was written and there is no bit", func(in *BaseInput) { in.Bitmaps[0].DirtyBytes = 0 }, increment(5)},

		// Alarms that change nothing else.
		{"the image is an older copy", func(in *BaseInput) {
			in.Newest, in.Local = runN(8), []ident.RunID{runN(9)}
			in.Stamps[runN(8)] = committed(5)
		}, alarm(increment(5), AlarmImageRolledBack)},
		{"the run before stored its point and did not reset", func(in *BaseInput) {
			in.Newest, in.Local = runN(8), []ident.RunID{runN(9), runN(8)}
			in.Stamps[runN(8)] = committed(5)
		}, increment(5)},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := goodInput()
			c.change(&in)
			d := ChooseBase(in)
			got := want{mode: d.Mode, reason: d.Reason}
			if !d.Base.IsZero() {
				got.base = d.Base[0]
			}
			if len(d.Alarms) > 0 {
				got.alarm = d.Alarms[0].Kind
			}
			if got != c.want || len(d.Alarms) > 1 || !d.Busy.IsZero() {
				t.Fatalf("got %+v, want %+v (%+v)", got, c.want, d)
			}
			checkDecision(t, in, d)
		})
	}
}

// checkDecision holds for every decision.
func checkDecision(t *testing.T, in BaseInput, d Decision) {
	t.Helper()
	incremental := d.Mode == format.ModeIncremental
	switch {
	case incremental != (d.Reason == ReasonNone) || incremental == d.Base.IsZero():
		t.Errorf("mode, reason and base contradict each other: %+v", d)
	case incremental && d.Compare != d.Base || !incremental && d.Compare != in.Newest:
		t.Errorf("compared with %s: %+v", d.Compare, d)
	case (d.Mode == format.ModeFull) != d.Compare.IsZero():
		t.Errorf("a full backup compares with nothing, all others with something: %+v", d)
	case incremental && d.AddFamily || !incremental && d.AddFamily != in.BitmapsPossible:
		t.Errorf("a fresh family is wrong: %+v", d)
	case !incremental && len(d.Extra) > 0:
		t.Errorf("extra ranges where everything is read: %+v", d)
	}
	if d.Reason != ReasonNone && !slices.Contains(Reasons(), d.Reason) {
		t.Errorf("reason %q is not in the closed set", d.Reason)
	}
}

func TestARunThatMayBeAliveStopsTheChoice(t *testing.T) {
	for _, asked := range []bool{false, true} {
		in := goodInput()
		frozenBy6(StampRunning)(&in)
		in.Stamps[runN(6)] = Stamp{State: StampRunning, Detail: "host b"}
		in.Rescan = asked
		want := Decision{Busy: runN(6), BusyDetail: "host b"}
		if d := ChooseBase(in); !reflect.DeepEqual(d, want) {
			t.Fatalf("got %+v", d)
		}
	}
}

func TestAGrownDiskReadsItsTailAndTheBlockThatWasPartial(t *testing.T) {
	const b = testBlockBytes
	for _, c := range []struct {
		was, is int64
		want    []extent.Extent
	}{
		{10 * b, 10 * b, nil},
		{10 * b, 10*b + 1, []extent.Extent{{Off: 10 * b, Len: 1}}},
		{10*b - 1, 10 * b, []extent.Extent{{Off: 9 * b, Len: b}}},
		{10*b + 1, 12 * b, []extent.Extent{{Off: 10 * b, Len: 2 * b}}},
		{0, 512, []extent.Extent{{Off: 0, Len: 512}}},
	} {
		if got := grownTail(c.was, c.is, b); !slices.Equal(got, c.want) {
			t.Errorf("from %d to %d: %v, want %v", c.was, c.is, got, c.want)
		}
	}
	in := goodInput()
	in.SizeBytes += b
	if d := ChooseBase(in); !slices.Equal(d.Extra, []extent.Extent{{Off: 10 * b, Len: b}}) {
		t.Errorf("the decision reads %v", d.Extra)
	}
}

func TestANameTornByAResetIsUnknownAndAlarmsNobody(t *testing.T) {
	run := ident.RunID{8, 8, 8, 8, 8, 8, 0x78, 8, 0x88, 8, 8, 8, 8, 8, 8, 8}
	before, after := runN(5).String(), run.String()
	for _, c := range []struct {
		stamp string
		torn  bool
	}{
		{after[:10] + before[10:], true},
		{before[:10] + after[10:], true},
		{before[:5] + after[5:10] + before[10:], false},
		{runN(77).String(), false},
	} {
		stamp, err := ident.ParseRunID(c.stamp)
		if err != nil {
			t.Fatal(err)
		}
		in := goodInput()
		in.Bitmaps[0].Name.Stamp = stamp
		in.Stamps = map[ident.RunID]Stamp{stamp: {}, run: committed(5)}
		in.Bases = map[ident.RunID]ident.RunID{run: runN(5)}
		in.Newest, in.Local = run, []ident.RunID{run}
		if d := ChooseBase(in); d.Reason != ReasonUnknownStamp || (len(d.Alarms) == 0) != c.torn {
			t.Errorf("stamp %s: %s, %v", c.stamp, d.Reason, d.Alarms)
		}
	}
}

func TestAnotherFileIsNoticed(t *testing.T) {
	in := goodInput()
	if ChooseBase(in).Moved {
		t.Error("the same file counts as moved")
	}
	in.Facts.Inode++
	if d := ChooseBase(in); !d.Moved || d.Mode != format.ModeIncremental {
		t.Errorf("another inode: %+v", d)
	}
	in.Rescan = true
	if !ChooseBase(in).Moved {
		t.Error("another inode in a rescan is not noticed")
	}
	in = goodInput()
	in.Facts.Chain[0].ModifiedNanos, in.Facts.Chain[0].ChangedNanos = 0, 0
	if d := ChooseBase(in); !d.Moved || d.Mode != format.ModeIncremental {
		t.Errorf("a block device may always be another: %+v", d)
	}
}

func TestWhyThereCanBeNoBitmapIsTold(t *testing.T) {
	in := goodInput()
	in.Bitmaps, in.BitmapsPossible, in.WhyNot = nil, false, "none can be made: unknown feature"
	if d := ChooseBase(in); d.Reason != ReasonNoBitmap || d.Detail != in.WhyNot || d.AddFamily {
		t.Errorf("%+v", d)
	}
}

func TestReasonsAreDistinctShortPhrases(t *testing.T) {
	seen := map[Reason]bool{ReasonNone: true}
	for _, r := range Reasons() {
		if seen[r] || len(r) > 48 || strings.TrimSpace(string(r)) != string(r) {
			t.Errorf("reason %q", r)
		}
		seen[r] = true
	}
}
