package repo

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/fault"
)

// recorder notes the keys of all calls in their order.
type recorder struct {
	store.Store
	calls []string
}

func (r *recorder) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	r.calls = append(r.calls, "put "+key)
	return r.Store.Put(ctx, key, body, o)
}

func (r *recorder) Stat(ctx context.Context, key string) (store.Info, error) {
	r.calls = append(r.calls, "stat "+key)
	return r.Store.Stat(ctx, key)
}

func TestARunSendsItsObjectsInTheOrderThatKeepsThemSafe(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	base := w.backup(nil, testSize, change{0, 40, 1})
	noted := &recorder{Store: w.mem}
	w.repo.store = noted
	a, err := w.begin(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.upload(ctx, testSize, change{0, 2, 2}); err != nil {
		t.Fatal(err)
	}
	if err := a.run.Publish(ctx, a.record); err != nil {
		t.Fatal(err)
	}
	run := a.run.ID()
	want := []string{
		"put " + format.IntentKey(testMachine, run, 0),
		"stat " + format.TombstoneKey(testMachine, base.record.Run, 0),
		"put " + format.PackKey(testMachine, run, 0),
		"put " + format.MapKey(testMachine, run, 0),
		"put " + format.ManifestKey(testMachine, run),
		"put " + format.PointKey(testMachine, run),
		"stat " + format.TombstoneKey(testMachine, run, 0),
	}
	// The builder looks up the size of the map object it reads from.
	got := slices.DeleteFunc(noted.calls, func(c string) bool { return strings.HasPrefix(c, "stat data/") })
	if !slices.Equal(got, want) {
		t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestIntentAndRenewalsNameEveryBase(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	base := w.backup(nil, testSize, change{0, 40, 1})
	a, err := w.begin(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint32(3) {
		if n > 0 {
			if err := a.run.Renew(ctx); err != nil {
				t.Fatal(err)
			}
		}
		b, err := store.ReadAll(ctx, w.mem, format.IntentKey(testMachine, a.run.ID(), n), format.MaxDocumentBytes)
		if err != nil {
			t.Fatal(err)
		}
		intent, err := format.ParseIntent(b, a.run.Identity(), n)
		if err != nil || len(intent.Bases) != 1 || intent.Bases[0].Run != base.record.Run || intent.Nonce != a.run.intent.Nonce || intent.Kind != format.IntentBackup {
			t.Errorf("intent %d: %+v, %v", n, intent, err)
		}
	}
}

func TestABaseForgottenBeforeTheIntentEndsTheRun(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	base := w.backup(nil, testSize, change{0, 40, 1})
	w.forget(base.record.Run)
	before := w.keys("points/")
	_, err := w.begin(ctx, base)
	var forgotten *BaseForgottenError
	if !errors.As(err, &forgotten) || forgotten.Run != base.record.Run || !slices.Equal(forgotten.Disks, []string{"root"}) || !errors.Is(err, ErrForgotten) {
		t.Fatalf("got %v", err)
	}
	after := w.keys("points/")
	if len(after) != len(before)+1 {
		t.Fatalf("slots %v: the run did not take its own", after)
	}
	key, err := format.ParseKey(after[len(after)-1])
	if err != nil {
		t.Fatal(err)
	}
	if s, err := w.repo.Slot(ctx, testMachine, key.Run); err != nil || s.State != SlotAborted {
		t.Errorf("slot of the run: %+v, %v", s, err)
	}
}

func TestKeysOfARunThatHoldOtherBytesFailIt(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, err := w.begin(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	put(t, w.mem, format.PackKey(testMachine, a.run.ID(), 1), "somebody else's")
	if err := a.upload(ctx, testSize, change{0, 100, 1}); !errors.Is(err, ErrConflict) {
		t.Errorf("pack: %v", err)
	}
	_, err = w.repo.Begin(ctx, IntentSpec{Machine: testMachine, MachineID: w.machine.ID, Run: a.run.ID(), Host: "host2"})
	if !errors.Is(err, ErrConflict) {
		t.Errorf("a second writer with the same run id: %v", err)
	}
}

func TestPacksOfOthersAndTwiceAreRefused(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, err := w.begin(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	id := a.run.Identity()
	pack := func(h format.PackHeader) format.SealedPack {
		p, err := format.NewPackWriter(h, 1<<20).Seal()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := format.PackHeader{Repository: id.Repository, MachineID: id.MachineID, Run: id.Run, Seq: 3, BlockBytes: testBlock}
	other := good
	other.Run = ident.RunID{1}
	if err := a.run.PutPack(ctx, pack(other)); !errors.Is(err, format.ErrMisplaced) {
		t.Errorf("a pack of another run: %v", err)
	}
	if err := a.run.PutPack(ctx, pack(good)); err != nil {
		t.Fatal(err)
	}
	if err := a.run.PutPack(ctx, pack(good)); !errors.Is(err, format.ErrInvalid) {
		t.Errorf("a pack twice: %v", err)
	}
	if err := a.run.Publish(ctx, &format.Record{}); !errors.Is(err, format.ErrInvalid) {
		t.Errorf("publish before seal: %v", err)
	}
	if _, err := a.run.Seal(ctx, nil); err != nil {
		t.Fatal(err)
	}
	good.Seq = 4
	if err := a.run.PutPack(ctx, pack(good)); !errors.Is(err, format.ErrInvalid) {
		t.Errorf("a pack after the manifest: %v", err)
	}
	if _, err := a.run.Sink().PutNode(ctx, make([]byte, 64)); !errors.Is(err, format.ErrInvalid) {
		t.Errorf("a node after the manifest: %v", err)
	}
	if _, err := a.run.Seal(ctx, nil); !errors.Is(err, format.ErrInvalid) {
		t.Errorf("a second manifest: %v", err)
	}
}

func TestWhatIsNotListedBackIsNotPublished(t *testing.T) {
	ctx := context.Background()
	for name, rule := range map[string]fault.Rule{
		"a pack is missing":      {Verb: fault.List, Prefix: "", Kind: fault.Omit, Count: fault.Forever},
		"sizes differ":           {Verb: fault.List, Prefix: "data/", Kind: fault.Resize},
		"the listing is cut off": {Verb: fault.List, Prefix: "data/", Kind: fault.Truncate},
	} {
		w := newWorld(t)
		a, err := w.begin(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rule.Kind == fault.Omit {
			rule.Prefix = format.PackKey(testMachine, a.run.ID(), 1)
		}
		w.repo.store = fault.New(w.mem, 1, rule)
		err = a.upload(ctx, testSize, change{0, 100, 1})
		switch {
		case err == nil:
			t.Errorf("%s: sealed", name)
		case rule.Kind == fault.Truncate && !errors.Is(err, store.ErrTransient), rule.Kind != fault.Truncate && !errors.Is(err, ErrIncomplete):
			t.Errorf("%s: %v", name, err)
		case rule.Kind == fault.Omit && !strings.Contains(err.Error(), rule.Prefix):
			t.Errorf("%s: %v does not name it", name, err)
		}
		if _, err := a.run.Seal(ctx, nil); a.record != nil || err == nil && rule.Kind == fault.Omit {
			t.Errorf("%s: went on, %v", name, err)
		}
	}
}

func TestManyNodesFillSeveralMapObjects(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, err := w.begin(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Every block in another pack: leaves as large as they get, 16 KiB.
	leaf := &format.Node{}
	for i := range format.NodeFanout {
		leaf.Spans = append(leaf.Spans, format.LeafSpan{Start: i, Count: 1, Loc: format.Location{Run: a.run.ID(), Pack: uint32(i)}})
	}
	var refs []format.NodeRef
	var raw []byte
	for i := range int64(1100) {
		leaf.FirstBlock = i * format.NodeFanout
		if i%100 == 0 || len(raw) == 0 {
			if raw, err = format.AppendNode(raw[:0], leaf); err != nil {
				t.Fatal(err)
			}
		}
		ref, err := a.run.Sink().PutNode(ctx, raw)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if _, err := a.run.Seal(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(a.run.manifest.Maps); n != 2 || refs[len(refs)-1].Object != 1 {
		t.Fatalf("%d map objects", n)
	}
	w.reopen()
	src := w.repo.Nodes(testMachine)
	for i, ref := range refs {
		if i%50 != 0 && i < len(refs)-80 {
			continue
		}
		n, err := src.Node(ctx, ref)
		if err != nil || n.FirstBlock != int64(i/100*100)*format.NodeFanout || len(n.Spans) != format.NodeFanout {
			t.Fatalf("node %d: %v", i, err)
		}
	}
}

func TestARecordMayNotReferToAMapThatTheManifestDoesNotName(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	base := w.backup(nil, testSize, change{0, 40, 1})
	a, err := w.begin(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.run.Seal(ctx, nil); err != nil {
		t.Fatal(err)
	}
	record := *base.record
	if err := a.run.Publish(ctx, &record); !errors.Is(err, format.ErrInvalid) {
		t.Errorf("published a map of run %s without its dependency: %v", base.record.Run, err)
	}
	if s, err := w.repo.Slot(ctx, testMachine, a.run.ID()); err != nil || s.State != SlotAbsent {
		t.Errorf("slot %v, %v", s.State, err)
	}
}

func TestAnIncrementWithoutAChangeIsAPoint(t *testing.T) {
	w := newWorld(t)
	base := w.backup(nil, testSize, change{0, 40, 1})
	p := w.backup(base, testSize)
	w.check(p.record.Run)
	if len(p.manifest.Packs)+len(p.manifest.Maps) != 0 || !bytes.Equal(w.points[p.record.Run], w.points[base.record.Run]) {
		t.Errorf("manifest %+v", p.manifest)
	}
	if p.record.Disk("root").Map.Node != base.record.Disk("root").Map.Node {
		t.Error("the map has another root")
	}
}
