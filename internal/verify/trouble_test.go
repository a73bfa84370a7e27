package verify

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/repo/repotest"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
)

// through opens the repository behind faults.
func (w *world) through(rules ...fault.Rule) *repo.Repository {
	w.t.Helper()
	s := fault.New(w.Mem, 1)
	r, err := repo.Open(context.Background(), s, w.Options())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, rule := range rules {
		s.Add(rule)
	}
	return r
}

func TestWhatIsFoundIsRecordedOnce(t *testing.T) {
	h := newHistory(t)
	pack, node, manifest := format.PackKey("web1", h.first, 0), format.MapKey("web1", h.second, 0), format.ManifestKey("web1", h.third)
	for _, key := range []string{pack, node, manifest} {
		b := h.get(key)
		h.spoil(key, flipped(b, format.PackHeaderBytes+2, 1))
	}
	before := h.keys(format.KeyVerdict)
	h.verify(Options{Data: true})
	if got := h.keys(format.KeyVerdict); !slices.Equal(got, before) {
		t.Fatalf("without Record there are the verdicts %v", got)
	}
	for range 2 {
		h.verify(Options{Data: true, Record: true, Host: "host1", Tool: "test"})
		var named []string
		for _, key := range h.keys(format.KeyVerdict) {
			k, _ := format.ParseKey(key)
			v, err := format.ParseVerdict(h.get(key), h.Identity("web1", k.Run), k.Number)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range v.Damage {
				named = append(named, f.Key)
			}
		}
		slices.Sort(named)
		want := []string{pack, node, manifest}
		slices.Sort(want)
		if !slices.Equal(named, want) {
			t.Fatalf("verdicts name %v, want %v", named, want)
		}
	}
	bad := &repo.PackSet{}
	if err := h.Open().Condemn(context.Background(), "web1", bad); err != nil {
		t.Fatal(err)
	}
	if !bad.Has(h.first, 0) || bad.Has(h.first, 1) || !bad.HasMaps(h.second) || bad.HasMaps(h.first) || !bad.Has(h.third, 0) {
		t.Error("the verdicts do not condemn what they name, or more than that")
	}
}

func TestManyDamagedPacksFitIntoVerdicts(t *testing.T) {
	w := newWorld(t)
	run := w.Backup("web1", ident.RunID{}, diskSpec{Name: "root", SizeBytes: 3000 * testBlock, Changes: repotest.Changes(0, 3000, 1)})
	packs := w.keys(format.KeyPack)
	if len(packs) < 3*verdictFindings {
		t.Fatalf("only %d packs", len(packs))
	}
	for _, key := range packs {
		w.spoil(key, []byte("spoiled"))
	}
	w.verify(Options{Record: true})
	bad := &repo.PackSet{}
	if err := w.Open().Condemn(context.Background(), "web1", bad); err != nil {
		t.Fatal(err)
	}
	for seq := range packs {
		if !bad.Has(run, uint32(seq)) {
			t.Fatalf("pack %d of %d is not condemned", seq, len(packs))
		}
	}
	// Afterwards the verdicts are part of a sound repository.
	report := w.verify(Options{})
	for _, d := range report.Damage {
		if strings.HasPrefix(d.Key, "verdicts/") {
			t.Errorf("%s: %s", d.Key, d.Problem)
		}
	}
}

func TestAStoreThatTakesNoVerdictGetsARemark(t *testing.T) {
	h := newHistory(t)
	key := format.PackKey("db", h.db, 0)
	h.spoil(key, nil)
	r := h.through(fault.Rule{Verb: fault.Put, Count: fault.Forever, Err: store.ErrDenied})
	report, err := Run(context.Background(), r, Options{Record: true})
	if err != nil {
		t.Fatal(err)
	}
	onlyKey(t, "denied verdict", key, report)
	if !strings.Contains(strings.Join(report.Remarks, "\n"), "is not marked as damaged in the repository") {
		t.Errorf("remarks: %q", report.Remarks)
	}
}

func TestAVerdictNumberThatIsTakenIsPassedOver(t *testing.T) {
	h := newHistory(t)
	h.spoil(format.PackKey("db", h.db, 0), nil)
	// The verdict of another verification that runs at the same time, and was not listed.
	body, err := format.AppendVerdict(nil, &format.Verdict{Identity: h.Identity("db", h.db), Level: "data", Good: true, Time: h.Clock()})
	h.Put(format.VerdictKey("db", h.db, 0), body, err)
	r := h.through(fault.Rule{Verb: fault.List, Prefix: "verdicts/db/", Count: fault.Forever, Kind: fault.Omit})
	report, err := Run(context.Background(), r, Options{Record: true})
	if err != nil {
		t.Fatal(err)
	}
	h.get(format.VerdictKey("db", h.db, 1))
	if text := strings.Join(report.Remarks, "\n"); strings.Contains(text, "not marked") {
		t.Errorf("remarks: %s", text)
	}
}

func TestBytesThatAreSpoiledOnTheirWayAreARemark(t *testing.T) {
	h := newHistory(t)
	for _, prefix := range []string{"points/", "machines/", "data/", format.ManifestKey("web1", h.first), format.PackKey("web1", h.second, 0), format.MapKey("web1", h.third, 0)} {
		r := h.through(fault.Rule{Verb: fault.Get, Prefix: prefix, Kind: fault.Garble})
		report, err := Run(context.Background(), r, Options{Data: true, Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Damage) > 0 {
			t.Errorf("%s: %+v", prefix, report.Damage)
		}
		// Nodes are read a second time by the reader of maps, which does not tell.
		if prefix != format.MapKey("web1", h.third, 0) && !strings.Contains(strings.Join(report.Remarks, "\n"), "right the second time") {
			t.Errorf("%s: remarks %q", prefix, report.Remarks)
		}
	}
}

func TestAStoreThatCannotBeAskedIsAnErrorAndNoDamage(t *testing.T) {
	h := newHistory(t)
	calls := testCalls(t, h)
	for n := 1; n <= calls; n += max(calls/40, 1) {
		report, err := Run(context.Background(), h.through(fault.Down(n)), Options{Data: true})
		if !errors.Is(err, store.ErrUnreachable) || report != nil {
			t.Fatalf("down from call %d of %d on: %v, %+v", n, calls, err, report)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Run(ctx, h.Open(), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// testCalls counts the calls of a verification: the last that matters when the store goes away.
func testCalls(t *testing.T, h *history) int {
	t.Helper()
	s := fault.New(h.Mem, 1)
	r, err := repo.Open(context.Background(), s, h.Options())
	if err != nil {
		t.Fatal(err)
	}
	before := s.Calls(fault.Any)
	if _, err := Run(context.Background(), r, Options{Data: true}); err != nil {
		t.Fatal(err)
	}
	return s.Calls(fault.Any) - before
}

func TestAnObjectThatTheListingMissedIsNoDamage(t *testing.T) {
	h := newHistory(t)
	r := h.through(fault.Rule{Verb: fault.List, Prefix: format.DataPrefix("web1", h.second), Count: fault.Forever, Kind: fault.Omit})
	report, err := Run(context.Background(), r, Options{Data: true})
	if err != nil || len(report.Damage) > 0 {
		t.Errorf("%v, %+v", err, report)
	}
}

func TestARunThatThePointsManifestDoesNotNameIsDamage(t *testing.T) {
	w := newWorld(t)
	// Two leaves: the second one is shared.
	disk := diskSpec{Name: "root", SizeBytes: 1100 * testBlock, Changes: repotest.Changes(0, 4, 1, 1030, 8, 1)}
	first := w.Backup("web1", ident.RunID{}, disk)
	a := w.Begin("web1", first)
	disk.FromBase, disk.Changes = true, repotest.Changes(0, 4, 2)
	base := a.Base
	ctx := context.Background()
	a.Record = &format.Record{Time: a.Clock(), Started: a.Pass(0), Consistency: format.ConsistencyOffline, Host: "host1", Tool: "test"}
	root := a.Disk(ctx, 0, disk)
	a.Flush(ctx)
	if _, err := a.Run.Seal(ctx, nil); err != nil { // without base.Dependencies()
		t.Fatal(err)
	}
	a.Record.Disks = []format.DiskRecord{{Name: "root", Mode: format.ModeIncremental, Base: base.Record().Run, SizeBytes: disk.SizeBytes, Map: root}}
	second := a.Publish()
	report := w.verify(Options{})
	key := format.ManifestKey("web1", second)
	onlyKey(t, "manifest without a run", key, report)
	if got := reported(report); len(got) != 1 || got[0].run != second || got[0].off != 1024*testBlock {
		t.Errorf("ranges %v", got)
	}
}

func TestABlockOfAnotherPlaceIsDamage(t *testing.T) {
	w := newWorld(t)
	a := w.Begin("web1", ident.RunID{})
	ctx := context.Background()
	a.Record = &format.Record{Time: a.Clock(), Started: a.Pass(0), Consistency: format.ConsistencyOffline, Host: "host1", Tool: "test"}
	b, err := blockmap.NewBuilder(nil, 0, 64, a.Repo.Nodes("web1"), a.Run.Sink())
	if err != nil {
		t.Fatal(err)
	}
	a.Frame(ctx, b, 0, make([]byte, 64*testBlock), 0, 4, 1)
	for _, s := range []blockmap.Span{
		{First: 8, Count: 4, Loc: format.Location{Run: a.Run.ID()}},              // what lies there is block 0
		{First: 16, Count: 2, Loc: format.Location{Run: a.Run.ID(), Ordinal: 3}}, // the pack has four blocks
		{First: 32, Count: 1, Loc: format.Location{Run: a.Run.ID(), Pack: 9}},    // no such pack
	} {
		if err := b.Set(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a.Flush(ctx)
	if _, err := a.Run.Seal(ctx, nil); err != nil {
		t.Fatal(err)
	}
	a.Record.Disks = []format.DiskRecord{{Name: "root", Mode: format.ModeFull, SizeBytes: 64 * testBlock, Map: root}}
	run := a.Publish()
	report := w.verify(Options{})
	want := []lostRange{{run, "root", 8 * testBlock, 4 * testBlock}, {run, "root", 16 * testBlock, 2 * testBlock}, {run, "root", 32 * testBlock, testBlock}}
	if got := reported(report); !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v: %+v", got, want, report.Damage)
	}
}

func TestNodesThatAreForgottenAreTheOldest(t *testing.T) {
	// Each step adds at most two: a new one, and one that was asked for.
	s := newNodeSet(100)
	random := rand.New(rand.NewPCG(1, 1))
	key := func(n int) nodeKey { return keyOfNode(format.NodeRef{Offset: uint32(n)}, 0, 0) }
	for n := range 1000 {
		s.put(key(n), outcome{runs: uint64(n)})
		if back := n - random.IntN(min(n+1, 50)); back >= 0 {
			if o, ok := s.get(key(back)); !ok || o.runs != uint64(back) {
				t.Fatalf("after %d nodes, node %d is forgotten", n, back)
			}
		}
		if held := len(s.young) + len(s.old); held > 200 {
			t.Fatalf("%d nodes are held", held)
		}
	}
}

func TestTooManyRangesAreCounted(t *testing.T) {
	table := newTable()
	f := wholeObject("data/x", "bad")
	for i := range maxRanges + 5 {
		table.addRange(f, pointID{machine: "m"}, ident.RunID{}.Time(), "root", extentAt(int64(i)*2))
	}
	if table.omitted != 5 || len(table.damage()[0].Points[0].Disks) != maxRanges {
		t.Errorf("%d ranges are omitted", table.omitted)
	}
}
