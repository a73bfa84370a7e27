package verify

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/repo/repotest"
	"github.com/qbackup/qbackup/internal/testtool"
)

// history is a world with everything that a repository can hold.
type history struct {
	*world
	first, second, third, fourth, db ident.RunID
	forgotten                        ident.RunID
}

func newHistory(t testing.TB) *history {
	w := newWorld(t)
	h := &history{world: w}
	const size = 40*testBlock - 512
	// Points with one tree of two levels: blocks beyond 1024 make another leaf.
	const large = 1030 * testBlock
	h.forgotten = w.Backup("web1", ident.RunID{},
		diskSpec{Name: "root", SizeBytes: size, Changes: repotest.Changes(0, 17, 1, 36, 4, 1)},
		diskSpec{Name: "data", SizeBytes: large, Changes: repotest.Changes(5, 6, 2, 1023, 3, 2)})
	h.first = w.Backup("web1", h.forgotten,
		diskSpec{Name: "root", SizeBytes: size, FromBase: true, Changes: repotest.Changes(2, 3, 2, 9, 1, 0)},
		diskSpec{Name: "data", SizeBytes: large, FromBase: true, Changes: repotest.Changes(1025, 1, 2)})
	h.second = w.Backup("web1", h.first,
		diskSpec{Name: "data", SizeBytes: large, FromBase: true, Changes: repotest.Changes(6, 1, 3)},
		diskSpec{Name: "root", SizeBytes: size, FromBase: true, Changes: repotest.Changes(20, 2, 3)},
		diskSpec{Name: "gone", Missing: true})
	h.third = w.Backup("web1", h.second,
		diskSpec{Name: "root", SizeBytes: size, FromBase: true, Changes: repotest.Changes(0, 5, 0, 30, 1, 4)},
		diskSpec{Name: "data", SizeBytes: large, FromBase: true, Changes: repotest.Changes(1024, 1, 4)})
	h.fourth = w.Backup("web1", ident.RunID{},
		diskSpec{Name: "root", SizeBytes: size, Changes: repotest.Changes(0, 2, 5, 2, 30, 0)},
		diskSpec{Name: "data", SizeBytes: large})
	h.db = w.Backup("db", ident.RunID{}, diskSpec{Name: "only", SizeBytes: 9 * testBlock, Changes: repotest.Changes(1, 7, 6)})
	w.forget("web1", h.forgotten)

	aborted := w.Begin("web1", h.third)
	aborted.Upload(diskSpec{Name: "root", SizeBytes: size, FromBase: true, Changes: repotest.Changes(7, 1, 7)})
	if err := aborted.Run.Abort(context.Background(), "test"); err != nil {
		t.Fatal(err)
	}
	dying := w.Begin("web1", h.third)
	if err := dying.Run.Renew(context.Background()); err != nil {
		t.Fatal(err)
	}
	dying.Upload(diskSpec{Name: "root", SizeBytes: size, FromBase: true, Changes: repotest.Changes(7, 1, 8)})
	body, err := format.AppendVerdict(nil, &format.Verdict{Identity: w.Identity("web1", h.first), Level: "data", Good: true, Time: w.Clock()})
	w.Put(format.VerdictKey("web1", h.first, 0), body, err)
	w.Put("probe/some-object", []byte("whatever"), nil)
	return h
}

// reported gives the ranges of a report, joined.
func reported(report *Report) (all []lostRange) {
	for _, d := range report.Damage {
		for _, p := range d.Points {
			if p.Unreadable {
				all = append(all, lostRange{run: p.Point})
				continue
			}
			for _, r := range p.Disks {
				all = append(all, lostRange{p.Point, r.Disk, r.Off, r.Len})
			}
		}
	}
	return normal(all)
}

// normal sorts ranges and joins those that touch.
func normal(all []lostRange) []lostRange {
	slices.SortFunc(all, func(a, b lostRange) int {
		return cmp.Or(a.run.Compare(b.run), strings.Compare(a.disk, b.disk), cmp.Compare(a.off, b.off))
	})
	var out []lostRange
	for _, r := range all {
		if n := len(out); n > 0 && out[n-1].run == r.run && out[n-1].disk == r.disk && out[n-1].off+out[n-1].size >= r.off {
			out[n-1].size = max(out[n-1].size, r.off+r.size-out[n-1].off)
			continue
		}
		out = append(out, r)
	}
	return out
}

// checkExact compares a report with what can really not be read.
func (h *history) checkExact(what string, report *Report) {
	h.t.Helper()
	want, got := normal(h.truth()), reported(report)
	if !slices.Equal(want, got) {
		h.t.Fatalf("%s: the report names %v, what cannot be read is %v\n%+v", what, got, want, report.Damage)
	}
}

func onlyKey(t testing.TB, what, key string, report *Report) {
	t.Helper()
	if len(report.Damage) == 0 {
		t.Fatalf("%s: no damage was found", what)
	}
	for _, d := range report.Damage {
		if d.Key != key {
			t.Fatalf("%s: %s is called damaged: %s", what, d.Key, d.Problem)
		}
	}
}

func TestASoundRepositoryHasNoDamage(t *testing.T) {
	h := newHistory(t)
	for _, data := range []bool{false, true} {
		stats := new(Stats)
		report := h.verify(Options{Data: data, Stats: stats})
		if len(report.Damage) > 0 || report.Points != 5 {
			t.Fatalf("data %v: %d points, damage %+v", data, report.Points, report.Damage)
		}
		if report.Objects != stats.Objects.Load() || report.Bytes != stats.Bytes.Load() || stats.Total.Load() != report.Bytes {
			t.Errorf("data %v: %d objects and %d of %d bytes, the report says %d and %d", data, stats.Objects.Load(), stats.Bytes.Load(), stats.Total.Load(), report.Objects, report.Bytes)
		}
		if len(report.Remarks) != 1 || !strings.Contains(report.Remarks[0], "2 runs of machine web1") {
			t.Errorf("data %v: remarks %q", data, report.Remarks)
		}
	}
	if len(h.truth()) > 0 {
		t.Error("the repository cannot be read")
	}
}

func TestAFlippedBitAnywhereInADocumentIsFoundAndNamed(t *testing.T) {
	h := newHistory(t)
	kinds := []format.KeyKind{format.KeyRepository, format.KeyMachine, format.KeyIntent, format.KeyPoint, format.KeyTombstone, format.KeyVerdict}
	for _, key := range h.keys(kinds...) {
		old := h.get(key)
		step := testtool.Count(max(len(old)/10, 1), 1)
		for at := 0; at < len(old); at += step {
			undo := h.spoil(key, flipped(old, at, at%8))
			if strings.HasPrefix(key, format.RepositoryPrefix) {
				h.checkOpenFails(key)
			} else {
				report := h.verify(Options{Machines: []ident.MachineName{"web1", "db"}})
				onlyKey(t, key, key, report)
				h.checkDocument(key, at, report)
			}
			undo()
		}
	}
}

// checkDocument compares the points that a report names with what a damaged document costs.
func (h *history) checkDocument(key string, at int, report *Report) {
	h.t.Helper()
	var want []lostRange
	k, err := format.ParseKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, stands := h.Points[k.Run]; stands && k.Kind == format.KeyPoint {
		want = []lostRange{{run: k.Run}}
	}
	got := reported(report)
	if k.Kind == format.KeyPoint && len(want) == 0 && k.Run != h.forgotten {
		return // an ABORT: whether it was one cannot be told when its first line is damaged
	}
	if !slices.Equal(got, want) {
		h.t.Fatalf("%s at byte %d: the report names %v, want %v", key, at, got, want)
	}
}

func (h *history) checkOpenFails(key string) {
	h.t.Helper()
	err := openError(h.world)
	if err == nil || !strings.Contains(err.Error(), key) {
		h.t.Fatalf("%s: opening gives %v", key, err)
	}
}

func TestAFlippedBitAnywhereInDataIsFoundAndItsRangesAreExact(t *testing.T) {
	h := newHistory(t)
	needed := h.neededKeys()
	for _, key := range h.keys(format.KeyManifest, format.KeyMap, format.KeyPack) {
		old := h.get(key)
		step := testtool.Count(max(len(old)/8, 1), max(len(old)/600, 1))
		for at := 0; at < len(old); at += step {
			undo := h.spoil(key, flipped(old, at, at%8))
			report := h.verify(Options{Data: true})
			if !needed[key] {
				if len(report.Damage) > 0 {
					t.Fatalf("%s belongs to no point and is called damaged: %+v", key, report.Damage)
				}
			} else {
				onlyKey(t, key, key, report)
				h.checkExact(key, report)
				h.checkPlace(key, at, report)
			}
			undo()
		}
	}
}

// neededKeys are the objects that points need: what lies under the runs of points, and what their maps use of others.
func (h *history) neededKeys() map[string]bool {
	needed := map[string]bool{}
	for _, key := range h.keys(format.KeyManifest, format.KeyMap, format.KeyPack) {
		k, _ := format.ParseKey(key)
		if _, stands := h.Points[k.Run]; stands || k.Run == h.forgotten {
			needed[key] = true
		}
	}
	return needed
}

// checkPlace makes sure that the byte lies in what the report names.
func (h *history) checkPlace(key string, at int, report *Report) {
	h.t.Helper()
	for _, d := range report.Damage {
		if d.Offset < 0 || int64(at) >= d.Offset && int64(at) < d.Offset+d.Length {
			return
		}
	}
	h.t.Fatalf("%s: byte %d was spoiled, the report names %+v", key, at, report.Damage)
}

func TestMissingCutGrownAndSwappedObjectsAreFoundAndTheirRangesAreExact(t *testing.T) {
	h := newHistory(t)
	needed := h.neededKeys()
	data := h.keys(format.KeyManifest, format.KeyMap, format.KeyPack)
	for i, key := range data {
		old := h.get(key)
		other := h.get(data[(i+len(data)/2)%len(data)])
		for what, spoiled := range map[string][]byte{
			"missing": nil, "empty": {}, "cut by one byte": old[:len(old)-1], "cut in half": old[:len(old)/2],
			"grown": append(slices.Clone(old), 0), "swapped": other,
		} {
			for _, deep := range []bool{false, true} {
				undo := h.spoil(key, spoiled)
				report := h.verify(Options{Data: deep})
				switch {
				case !needed[key] && len(report.Damage) > 0:
					t.Fatalf("%s %s belongs to no point: %+v", key, what, report.Damage)
				case needed[key]:
					onlyKey(t, key+" "+what, key, report)
					if what != "grown" && what != "swapped" {
						h.checkExact(key+" "+what, report)
					}
				}
				undo()
			}
		}
	}
}

func TestMissingAndSwappedDocumentsAreFound(t *testing.T) {
	h := newHistory(t)
	// A machine's document, and the slot of a point: the point is gone, as after a delete, and nobody can tell.
	undo := h.spoil(format.MachineKey("web1"), nil)
	onlyKey(t, "missing machine", format.MachineKey("web1"), h.verify(Options{}))
	undo()
	for _, kind := range []format.KeyKind{format.KeyIntent, format.KeyPoint, format.KeyMachine} {
		keys := h.keys(kind)
		for i, key := range keys {
			undo := h.spoil(key, h.get(keys[(i+1)%len(keys)]))
			onlyKey(t, "swapped "+key, key, h.verify(Options{Machines: []ident.MachineName{machineOf(key)}}))
			undo()
		}
	}
	// An intent under a number that is not its own: an older one was put in the place of a newer.
	for _, key := range h.keys(format.KeyIntent) {
		if k, _ := format.ParseKey(key); k.Number > 0 {
			undo := h.spoil(key, h.get(format.IntentKey(k.Machine, k.Run, 0)))
			onlyKey(t, "older intent", key, h.verify(Options{}))
			undo()
		}
	}
}

func machineOf(key string) ident.MachineName {
	k, _ := format.ParseKey(key)
	return k.Machine
}

func TestEveryPackSpoiledAtOnceNamesEveryRange(t *testing.T) {
	h := newHistory(t)
	for i, key := range h.keys(format.KeyPack) {
		old := h.get(key)
		switch i % 3 {
		case 0:
			h.spoil(key, nil)
		case 1:
			h.spoil(key, flipped(old, format.PackHeaderBytes+3, 2))
		case 2:
			h.spoil(key, flipped(old, len(old)-1, 2))
		}
	}
	report := h.verify(Options{Data: true})
	h.checkExact("all packs", report)
	if _, err := json.Marshal(report); err != nil {
		t.Error(err)
	}
}

func TestForeignObjectsAreRemarks(t *testing.T) {
	h := newHistory(t)
	h.Put("holiday/picture.jpg", []byte("x"), nil)
	h.Put("data/web1/nonsense", []byte("x"), nil)
	h.Put(format.PackKey("web1", h.first, 77), []byte("x"), nil)
	report := h.verify(Options{Data: true})
	if len(report.Damage) > 0 {
		t.Fatalf("damage: %+v", report.Damage)
	}
	text := strings.Join(report.Remarks, "\n")
	for _, want := range []string{"holiday/picture.jpg", "data/web1/nonsense", "1 objects lie under " + format.DataPrefix("web1", h.first)} {
		if !strings.Contains(text, want) {
			t.Errorf("no remark of %s in\n%s", want, text)
		}
	}
}

func TestWhatOnlyForgottenPointsNeededMayBeGone(t *testing.T) {
	w := newWorld(t)
	disk := diskSpec{Name: "root", SizeBytes: 32 * testBlock, Changes: repotest.Changes(0, 24, 1)} // two packs
	old := w.Backup("web1", ident.RunID{}, disk)
	disk.FromBase, disk.Changes = true, repotest.Changes(0, 12, 2)
	w.Backup("web1", old, disk)
	w.forget("web1", old)
	first, second, maps := format.PackKey("web1", old, 0), format.PackKey("web1", old, 1), format.MapKey("web1", old, 0)
	w.spoil(first, nil)
	w.spoil(maps, nil)
	if report := w.verify(Options{Data: true}); len(report.Damage) > 0 {
		t.Fatalf("a pack and a map that no point needs are called damaged: %+v", report.Damage)
	}
	w.spoil(second, nil)
	onlyKey(t, "a pack that a point needs", second, w.verify(Options{}))
}

func TestOneMachineIsVerifiedAlone(t *testing.T) {
	h := newHistory(t)
	h.spoil(h.keys(format.KeyPack)[0], nil) // of db
	if report := h.verify(Options{Machines: []ident.MachineName{"web1"}}); len(report.Damage) > 0 || report.Points != 4 {
		t.Errorf("web1: %d points, %+v", report.Points, report.Damage)
	}
	if report := h.verify(Options{Machines: []ident.MachineName{"db"}}); len(report.Damage) != 1 || report.Points != 1 {
		t.Errorf("db: %d points, %+v", report.Points, report.Damage)
	}
	if _, err := Run(context.Background(), h.Open(), Options{Machines: []ident.MachineName{"web"}}); !errors.Is(err, ErrNoMachine) {
		t.Errorf("a machine that does not exist, and is a prefix of one: %v", err)
	}
}
