package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/sim"
	"github.com/qbackup/qbackup/internal/testtool"
)

// replacement is one call of Replace on an image with the bitmaps ours, foreign
// and "a third", in this order.
type replacement struct {
	name   string
	add    []BitmapSpec
	remove []string
	want   []string
}

var added = BitmapSpec{Name: final, GranularityBytes: 65536, Enabled: true}

var replacements = []replacement{
	{name: "add", add: []BitmapSpec{added}, want: []string{ours, foreign, "a third", final}},
	{name: "add and remove", add: []BitmapSpec{added, {Name: "off", GranularityBytes: 1 << 31}}, remove: []string{ours},
		want: []string{foreign, "a third", final, "off"}},
	{name: "remove", remove: []string{foreign}, want: []string{ours, "a third"}},
	{name: "remove all", remove: []string{ours, "a third", foreign, ours}},
	{name: "same name", add: []BitmapSpec{{Name: ours, GranularityBytes: 65536, Enabled: true}}, remove: []string{ours},
		want: []string{foreign, "a third", ours}},
}

func replace(add []BitmapSpec, remove []string) func(File) error {
	return func(f File) error {
		e, err := OpenEditor(f)
		if err != nil {
			return err
		}
		return e.Replace(add, remove)
	}
}

// oneOf is the proof that an image has either the old bitmaps, or the new ones,
// or none that are valid.
func oneOf(old map[string]bitmapState, oldNames []string, add []BitmapSpec, want []string) proof {
	specs := map[string]BitmapSpec{}
	for _, spec := range add {
		specs[spec.Name] = spec
	}
	return func(after map[string]bitmapState, names []string) error {
		isOld, isNew := slices.Equal(names, oldNames), slices.Equal(names, want)
		if len(names) > 0 && !isOld && !isNew {
			return fmt.Errorf("neither old nor new: %q", names)
		}
		for _, name := range names {
			spec, fresh := specs[name]
			got := after[name]
			if !isOld && fresh && (!got.empty() || got.enabled != spec.Enabled || got.granularity != spec.GranularityBytes) {
				return fmt.Errorf("%q is not as it was asked for", name)
			}
			if (isOld || !fresh) && got != old[name] {
				return fmt.Errorf("%q has changed", name)
			}
		}
		return nil
	}
}

func TestAReplacementCutAnywhereIsDoneOrNotOrLeavesNoBitmaps(t *testing.T) {
	for i, s := range someScenarios("64-bit", "16-bit", "extended", "backing file", "external") {
		r := replacements[i%len(replacements)]
		all := []replacement{r}
		if testtool.Count(0, 1) == 1 {
			all = replacements
		}
		for _, r := range all {
			t.Run(s.name+", "+r.name, func(t *testing.T) {
				t.Parallel()
				before := s.make(t, true)
				old, names, err := parseBitmaps(before)
				if err != nil {
					t.Fatal(err)
				}
				proveCrashes(t, before, s.big, replace(r.add, r.remove), oneOf(old, names, r.add, r.want))
			})
		}
	}
}

func TestAFirstBitmapIsAddedSafelyEverywhere(t *testing.T) {
	for _, s := range someScenarios("default", "1-bit", "backing") {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			before := s.make(t, false)
			add := []BitmapSpec{added}
			proveCrashes(t, before, s.big, replace(add, nil), oneOf(nil, nil, add, []string{final}))
		})
	}
}

func TestAnImageWithStaleBitmapsStartsAfresh(t *testing.T) {
	s := scenario{size: "9M", granularity: 512, options: []string{"cluster_size=512"}}
	before := s.make(t, true)
	before[headerAutoclear+7] = 0
	leaksBefore, _, err := checkImage(before)
	if err != nil || leaksBefore == 0 {
		t.Fatal(leaksBefore, err)
	}
	add := []BitmapSpec{added}
	proveCrashes(t, before, false, replace(add, nil), oneOf(nil, nil, add, []string{final}))

	f := sim.NewRecordingFile(before)
	if err := replace(add, []string{ours})(f); !errors.Is(err, ErrNotFound) {
		t.Errorf("a stale bitmap was found: %v", err)
	}
	if err := replace(add, nil)(f); err != nil {
		t.Fatal(err)
	}
	if leaks, _, err := checkImage(f.Content()); err != nil || leaks != leaksBefore {
		t.Errorf("%d leaks, %v, before %d: stale clusters are never freed", leaks, err, leaksBefore)
	}
}

func TestAReplacementLeavesNoLeaksAndOthersUntouched(t *testing.T) {
	for _, s := range someScenarios("default", "64-bit", "snapshots", "external", "2 MiB") {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			if err := os.WriteFile(path, s.make(t, true), 0o644); err != nil {
				t.Fatal(err)
			}
			f := openFile(t, path)
			before := rawEntry(t, path, foreign)
			for i := range 6 {
				spec := added
				spec.Name = fmt.Sprint("round ", i)
				remove := []string{ours}
				if i > 0 {
					remove = []string{fmt.Sprint("round ", i-1)}
				}
				if err := replace([]BitmapSpec{spec}, remove)(f); err != nil {
					t.Fatal(err)
				}
			}
			testtool.Run(t, "qemu-img", "check", path)
			if got := rawEntry(t, path, foreign); got != before {
				t.Errorf("the entry of another bitmap is %q, was %q", got, before)
			}
			var names []string
			for _, b := range qemuBitmaps(t, path) {
				names = append(names, b.Name)
			}
			if want := []string{foreign, "a third", "round 5"}; !slices.Equal(names, want) {
				t.Errorf("QEMU sees %q", names)
			}
			if err := replace(nil, names)(f); err != nil {
				t.Fatal(err)
			}
			out := testtool.Run(t, "qemu-img", "check", path) + testtool.Run(t, "qemu-img", "info", path)
			if strings.Contains(out, "bitmaps") || strings.Contains(out, "WARNING") {
				t.Error(out)
			}
		})
	}
}

// rawEntry returns the directory entry of a bitmap as stored.
func rawEntry(t testing.TB, path, name string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenImage(memory(b), ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x := bitmapOf(t, m, name)
	at := m.Header().Bitmaps.DirectoryOffset + x.entryAt
	return string(b[at : at+x.entryBytes])
}

func TestAnInUseBitmapCanBeRemoved(t *testing.T) {
	s := scenario{size: "9M", granularity: 512, options: []string{"cluster_size=512"}}
	for _, damaged := range []bool{false, true} {
		before := s.make(t, true)
		m, err := OpenImage(memory(before), ImageOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b := bitmapOf(t, m, ours)
		before[m.Header().Bitmaps.DirectoryOffset+b.entryAt+15] |= bitmapInUse
		if damaged {
			before[b.TableOffset+7] |= 2
		}
		f := sim.NewRecordingFile(before)
		if err := replace([]BitmapSpec{added}, []string{ours})(f); err != nil {
			t.Fatal(err)
		}
		leaks, wrong, err := checkImage(f.Content())
		if wrong > 0 || err != nil || (leaks > 0) != damaged {
			t.Errorf("damaged %v: %d leaks, %d errors, %v", damaged, leaks, wrong, err)
		}
	}
}

func TestAReplacementRefuses(t *testing.T) {
	s := scenario{size: "9M", granularity: 512, options: []string{"cluster_size=512"}}
	good := s.make(t, true)
	m, err := OpenImage(memory(good), ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := m.Header()
	b := bitmapOf(t, m, ours)
	spec := func(name string, granularity int64) []BitmapSpec {
		return []BitmapSpec{{Name: name, GranularityBytes: granularity}}
	}
	for _, c := range []struct {
		name   string
		edit   func(b []byte)
		add    []BitmapSpec
		remove []string
		class  error
	}{
		{name: "a name that is there", add: spec(foreign, 512), class: ErrExists},
		{name: "a name twice", add: append(spec("x", 512), spec("x", 512)...), class: ErrExists},
		{name: "removing what is not there", remove: []string{"x"}, class: ErrNotFound},
		{name: "no name", add: spec("", 512)},
		{name: "a name with a zero byte", add: spec("a\x00b", 512)},
		{name: "a name of 1024 bytes", add: spec(strings.Repeat("x", 1024), 512)},
		{name: "granularity 256", add: spec("x", 256), class: ErrUnsupported},
		{name: "granularity 4 GiB", add: spec("x", 1<<32), class: ErrUnsupported},
		{name: "granularity 513", add: spec("x", 513), class: ErrUnsupported},
		{name: "granularity 0", add: spec("x", 0), class: ErrUnsupported},
		{name: "unknown autoclear bit", edit: func(x []byte) { x[88] = 1 }, class: ErrUnsupported},
		{name: "two extensions", edit: func(x []byte) {
			end := h.ExtensionsEnd
			copy(x[end:], x[h.Bitmaps.PayloadOffset-8:h.Bitmaps.PayloadOffset+24])
		}, class: ErrCorrupt},
		{name: "bits with refcount 0", remove: []string{ours}, edit: func(x []byte) {
			setImageRefcount(x, h, int64(binary.BigEndian.Uint64(x[b.TableOffset:])), 0)
		}, class: ErrCorrupt},
		{name: "a table of another that is free", edit: func(x []byte) {
			setImageRefcount(x, h, bitmapOf(t, m, "a third").TableOffset, 0)
		}, class: ErrCorrupt},
		{name: "a refcount block for two ranges", edit: func(x []byte) {
			last := h.RefcountTableOffset + (h.Bitmaps.DirectoryOffset>>h.ClusterBits)*16/8/h.ClusterBytes()*8
			copy(x[last+8:last+16], x[last:last+8])
		}, class: ErrCorrupt},
		{name: "a refcount block beyond the end", edit: func(x []byte) {
			binary.BigEndian.PutUint64(x[h.RefcountTableOffset+8:], 1<<40)
		}, class: ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := slices.Clone(good)
			if c.edit != nil {
				c.edit(x)
			}
			if c.add == nil && c.remove == nil {
				c.add = []BitmapSpec{added}
			}
			f := sim.NewRecordingFile(x)
			err := replace(c.add, c.remove)(f)
			if err == nil || c.class != nil && !errors.Is(err, c.class) {
				t.Errorf("got %v, want %v", err, c.class)
			}
			if len(f.Ops()) != 0 {
				t.Errorf("wrote before it refused:\n%s", opsText(f.Ops()))
			}
		})
	}
}

func TestAVersion2ImageIsRefused(t *testing.T) {
	f := openFile(t, createImage(t, "1M", "compat=0.10"))
	if _, err := OpenEditor(f); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func TestNothingToReplaceWritesNothing(t *testing.T) {
	b, err := os.ReadFile(createImage(t, "1M"))
	if err != nil {
		t.Fatal(err)
	}
	f := sim.NewRecordingFile(b)
	if err := replace(nil, nil)(f); err != nil || len(f.Ops()) > 0 {
		t.Errorf("%v, %d operations", err, len(f.Ops()))
	}
}

func TestAFullFileSystemLeavesNoTrace(t *testing.T) {
	s := scenario{size: "9M", granularity: 512, options: []string{"cluster_size=512"}}
	before := s.make(t, true)
	f := &fullFile{RecordingFile: sim.NewRecordingFile(before), limit: int64(len(before))}
	err := replace([]BitmapSpec{added}, nil)(f)
	if !errors.Is(err, errFull) {
		t.Fatalf("got %v", err)
	}
	after := f.Content()
	if !slices.Equal(after, before) {
		t.Error("the image has changed")
	}
}

var errFull = errors.New("no space left on device")

// fullFile refuses to grow.
type fullFile struct {
	*sim.RecordingFile
	limit int64
}

func (f *fullFile) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.limit {
		return 0, errFull
	}
	return f.RecordingFile.WriteAt(p, off)
}
