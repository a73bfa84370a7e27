package qcow2

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestARestartCutAnywhereLeavesASupersetOrAnUnknownName(t *testing.T) {
	for _, s := range someScenarios("default", "1-bit", "2 MiB", "snapshots", "ones", "backing file, ") {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			before := s.make(t, true)
			old, _, err := parseBitmaps(before)
			if err != nil {
				t.Fatal(err)
			}
			if old[ours].empty() || old[foreign].empty() {
				t.Fatal("the image has no dirty bits")
			}
			restart := func(f File) error {
				e, err := OpenEditor(f)
				if err != nil {
					return err
				}
				return e.Restart(ours, interim, final)
			}
			reached := map[string]bool{}
			proveCrashes(t, before, s.big, restart, func(after map[string]bitmapState, names []string) error {
				if len(names) != 3 || names[1] != foreign || after[foreign] != old[foreign] || after["a third"] != old["a third"] {
					return fmt.Errorf("other bitmaps have changed: %q", names)
				}
				got := after[names[0]]
				if got.enabled != old[ours].enabled || got.granularity != old[ours].granularity {
					return fmt.Errorf("flags or granularity have changed: %v", got)
				}
				switch names[0] {
				case ours, interim, final:
					reached[fmt.Sprint(names[0], " ", got == old[ours], " ", got.empty())] = true
				}
				switch {
				case names[0] == ours && got != old[ours]:
					return errors.New("the old name with other bits")
				case names[0] == final && !got.empty():
					return errors.New("the final name with bits")
				case !isSubset(got.bits, old[ours].bits):
					return errors.New("bits that never were")
				}
				return nil
			})
			for _, want := range []string{ours + " true false", interim + " false true", final + " false true"} {
				if !reached[want] {
					t.Errorf("never in the state %q: %v", want, reached)
				}
			}
		})
	}
}

func isSubset(a, b string) bool {
	for i := range a {
		if a[i]&^b[i] != 0 {
			return false
		}
	}
	return len(a) == len(b)
}

func TestARestartedBitmapRecordsInQEMU(t *testing.T) {
	path := createImage(t, "100M")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "65536", path, ours)
	testtool.Run(t, "qemu-io", "-c", "write 1M 2M", path)
	e, err := OpenEditor(openFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Restart(ours, interim, final); err != nil {
		t.Fatal(err)
	}
	testtool.Run(t, "qemu-img", "check", path)
	testtool.Run(t, "qemu-io", "-c", "write 10M 64k", path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	states, names, err := parseBitmaps(b)
	if err != nil || !slices.Equal(names, []string{final}) {
		t.Fatalf("%q, %v", names, err)
	}
	want := make([]byte, 65536)
	want[160/8] = 1
	if states[final].bits != string(want) {
		t.Error("not exactly the written granule is dirty")
	}
	testtool.Run(t, "qemu-img", "check", path)
}

func TestAResetKeepsTheName(t *testing.T) {
	for _, s := range someScenarios("default", "4-bit", "extended", "ones") {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			f := sim.NewRecordingFile(s.make(t, true))
			e, err := OpenEditor(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Reset(ours); err != nil {
				t.Fatal(err)
			}
			states, names, err := parseBitmaps(f.Content())
			if err != nil || names[0] != ours || !states[ours].empty() || states[foreign].empty() {
				t.Errorf("%q, %v", names, err)
			}
			if leaks, errors, err := checkImage(f.Content()); leaks+errors > 0 || err != nil {
				t.Errorf("%d leaks, %d errors, %v", leaks, errors, err)
			}
			before := len(f.Ops())
			if err := e.Reset(ours); err != nil || len(f.Ops()) != before {
				t.Errorf("a second reset: %v, %d operations", err, len(f.Ops())-before)
			}
		})
	}
}

func TestARestartRefuses(t *testing.T) {
	s := scenario{size: "9M", granularity: 512, options: []string{"cluster_size=512"}}
	good := s.make(t, true)
	m, err := OpenImage(sim.NewRecordingFile(good), ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := m.Header()
	b := bitmapOf(t, m, ours)
	table, err := m.BitmapTable(b)
	if err != nil {
		t.Fatal(err)
	}
	other, err := m.BitmapTable(bitmapOf(t, m, foreign))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name           string
		edit           func(b []byte)
		old, mid, last string
		class          error
	}{
		{name: "no such bitmap", old: "nobody", class: ErrNotFound},
		{name: "another length", mid: interim + "x"},
		{name: "no name", mid: strings.Repeat("\x00", len(ours))},
		{name: "not recording", old: "a third", mid: "b third", last: "b third"},
		{name: "name of another", old: "a third", mid: foreign},
		{name: "in use", edit: func(x []byte) { x[h.Bitmaps.DirectoryOffset+b.entryAt+15] |= 1 }, class: ErrInUse},
		{name: "autoclear bit off", edit: func(x []byte) { x[95] = 0 }, class: ErrNotFound},
		{name: "unknown autoclear bit", edit: func(x []byte) { x[95] |= 4 }, class: ErrUnsupported},
		{name: "unknown incompatible bit", edit: func(x []byte) { x[79] |= 32 }, class: ErrUnsupported},
		{name: "dirty", edit: func(x []byte) { x[79] |= 1 }, class: ErrDirty},
		{name: "corrupt", edit: func(x []byte) { x[79] |= 2 }, class: ErrCorrupt},
		{name: "refcount 0 of bits", edit: func(x []byte) { setImageRefcount(x, h, int64(table[0]), 0) }, class: ErrCorrupt},
		{name: "refcount 2 of bits", edit: func(x []byte) { setImageRefcount(x, h, int64(table[0]), 2) }, class: ErrCorrupt},
		{name: "refcount 2 of the table", edit: func(x []byte) { setImageRefcount(x, h, b.TableOffset, 2) }, class: ErrCorrupt},
		{name: "refcount 2 of the directory", edit: func(x []byte) { setImageRefcount(x, h, h.Bitmaps.DirectoryOffset, 2) }, class: ErrCorrupt},
		{name: "bits of another bitmap", edit: func(x []byte) { copyEntry(x, b.TableOffset, other[0]) }, class: ErrCorrupt},
		{name: "bits twice", edit: func(x []byte) { copyEntry(x, b.TableOffset+8, table[0]) }, class: ErrCorrupt},
		{name: "bits in the header", edit: func(x []byte) { copyEntry(x, b.TableOffset, uint64(h.L1Offset)) }, class: ErrCorrupt},
		{name: "bits in an L2 table", edit: func(x []byte) { copyEntry(x, b.TableOffset, firstL2(m)) }, class: ErrCorrupt},
		{name: "bits in the refcount table", edit: func(x []byte) { copyEntry(x, b.TableOffset, uint64(h.RefcountTableOffset)) }, class: ErrCorrupt},
		{name: "bits beyond the end", edit: func(x []byte) { copyEntry(x, b.TableOffset, 1<<40) }, class: ErrCorrupt},
		{name: "reserved bit in the table of another", edit: func(x []byte) { x[bitmapOf(t, m, foreign).TableOffset+7] |= 2 }, class: ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := slices.Clone(good)
			if c.edit != nil {
				c.edit(x)
			}
			old, mid, last := ours, interim, final
			if c.old != "" {
				old = c.old
			}
			if c.mid != "" {
				mid = c.mid
			}
			if c.last != "" {
				last = c.last
			}
			f := sim.NewRecordingFile(x)
			e, err := OpenEditor(f)
			if err == nil {
				err = e.Restart(old, mid, last)
			}
			if err == nil || c.class != nil && !errors.Is(err, c.class) {
				t.Errorf("got %v, want %v", err, c.class)
			}
			if len(f.Ops()) != 0 {
				t.Errorf("wrote before it refused:\n%s", opsText(f.Ops()))
			}
		})
	}
}

// setImageRefcount sets the refcount of the cluster at an offset.
func setImageRefcount(b []byte, h *Header, off int64, v uint64) {
	r, err := openRefcounts(sim.NewRecordingFile(b), h, int64(len(b)))
	if err != nil {
		panic(err)
	}
	cluster := off >> h.ClusterBits
	block := int64(r.table[cluster/r.perBlock()])
	setRefcountAt(b[block:block+h.ClusterBytes()], h.RefcountBits, cluster%r.perBlock(), v)
}

func copyEntry(b []byte, at int64, entry uint64) {
	for i := range 8 {
		b[at+int64(i)] = byte(entry >> (56 - 8*i))
	}
}

func firstL2(m *Image) uint64 {
	for _, e := range m.l1 {
		if e&entryOffsetMask != 0 {
			return e & entryOffsetMask
		}
	}
	return 0
}

func TestARenameThatCouldBeCutAtTheNameOfAnotherIsRefused(t *testing.T) {
	if !isMix("aaBB", "aaaa", "BBBB") || isMix("aBaB", "aaaa", "BBBB") || isMix("BBaa", "aaaa", "BBBB") ||
		!isMix("aaaa", "aaaa", "BBBB") || !isMix("BBBB", "aaaa", "BBBB") {
		t.Error("isMix is wrong")
	}
	path := createImage(t, "1M")
	for _, name := range []string{"aaaa", "BBaa"} {
		testtool.Run(t, "qemu-img", "bitmap", "--add", path, name)
	}
	e, err := OpenEditor(openFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Restart("aaaa", "BBBB", "BBBB"); !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	if err := e.Restart("aaaa", "CCCC", "CCCC"); err != nil {
		t.Error(err)
	}
}

// Why a reset does not write zero table entries: offsets that are torn refer to
// something else.
func TestZeroingATableEntryInPlaceIsNotSafe(t *testing.T) {
	s := scenario{size: "9M", granularity: 512, options: []string{"cluster_size=512"}}
	before := s.make(t, true)
	m, err := OpenImage(memory(before), ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := bitmapOf(t, m, ours)
	r := sim.NewRecordingFile(before)
	if _, err := r.WriteAt(make([]byte, 8), b.TableOffset); err != nil {
		t.Fatal(err)
	}
	unsafe := 0
	for c := range r.Crashes(sim.CrashOptions{TornBytes: 8}) {
		if _, wrong, err := checkImage(r.After(c)); wrong > 0 || err != nil {
			unsafe++
		}
	}
	if unsafe == 0 {
		table, err := m.BitmapTable(b)
		t.Errorf("every tear of %#x, %v, was harmless", table, err)
	}
}

// BenchmarkRestart empties a bitmap with 1000 dirty granules scattered over a
// disk of 16 TiB.
func BenchmarkRestart(b *testing.B) {
	path := createImage(b, "16T")
	testtool.Run(b, "qemu-img", "bitmap", "--add", "-g", "65536", path, ours)
	args := []string{}
	for i := range int64(1000) {
		args = append(args, "-c", fmt.Sprintf("discard %d 64k", i*(16<<40)/1000&^65535))
	}
	testtool.Run(b, "qemu-io", append(args, path)...)
	dirty, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	f := openFile(b, path)
	for b.Loop() {
		b.StopTimer()
		if _, err := f.WriteAt(dirty, 0); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		e, err := OpenEditor(f)
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Restart(ours, interim, final); err != nil {
			b.Fatal(err)
		}
	}
}
