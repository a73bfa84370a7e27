package sim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// recordAll writes to an image, to a folder and to a watched folder, in turns:
//
//	0 image: write AB at 0   1 image: sync      2 folder: create t
//	3 folder: write 1234     4 folder: sync     5 folder: link t to f
//	6 watched: replace       7 folder: syncdir  8 image: write CDEF at 2
//	9 folder: remove t      10 folder: write 5678 to u, after its create
func recordAll(t *testing.T) *Log {
	t.Helper()
	log, root, watched := NewLog(), t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(root, "old"), []byte("old"), 0o600))
	log.Image("image", []byte("........"))
	folder, err := log.Folder("folder", root, NoSync{})
	must(err)
	must(log.Watch("watched", watched))
	image := log.File("image", NewRecordingFile([]byte("........")))

	_, err = image.WriteAt([]byte("AB"), 0)
	must(err)
	must(image.Sync())
	f, err := folder.Create(filepath.Join(root, "t"), 0o600)
	must(err)
	_, err = f.Write([]byte("1234"))
	must(err)
	must(f.Sync())
	must(folder.Link(filepath.Join(root, "t"), filepath.Join(root, "f")))
	must(os.WriteFile(filepath.Join(watched, "w"), []byte("w"), 0o600))
	must(folder.SyncDir(root))
	_, err = image.WriteAt([]byte("CDEF"), 2)
	must(err)
	must(folder.Remove(filepath.Join(root, "t")))
	u, err := folder.Create(filepath.Join(root, "u"), 0o600)
	must(err)
	_, err = u.Write([]byte("5678"))
	must(err)
	if err := folder.Link(filepath.Join(root, "u"), filepath.Join(root, "f")); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return log
}

func TestALogHasTheEffectsOfAllDevicesInTheirOrder(t *testing.T) {
	log := recordAll(t)
	var got []string
	for _, e := range log.Effects() {
		got = append(got, e.String())
	}
	want := []string{
		"image: write 2 bytes at 0x0", "image: sync", "folder: create t", "folder: write 4 bytes to t", "folder: sync t",
		"folder: link t to f", "watched: replace", "folder: syncdir .", "image: write 4 bytes at 0x2", "folder: remove t",
		"folder: create u", "folder: write 4 bytes to u",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := log.Devices(); !slices.Equal(got, []string{"image", "folder"}) {
		t.Errorf("devices %q", got)
	}
}

func file(text string) Entry { return Entry{Bytes: []byte(text)} }

func TestAPowerCutLeavesWhatEachDeviceHadSynced(t *testing.T) {
	log := recordAll(t)
	none, all := map[string]float64{"image": 0, "folder": 0}, map[string]float64(nil)
	old := file("old")
	for _, c := range []struct {
		cut     PowerCut
		image   string
		folder  Tree
		watched Tree
	}{
		{PowerCut{Kept: none}, "........", Tree{"old": old}, Tree{}},
		{PowerCut{Torn: 1}, "A.......", Tree{"old": old}, Tree{}},
		{PowerCut{Torn: 1, Tail: true}, ".B......", Tree{"old": old}, Tree{}},
		{PowerCut{Done: 1, Kept: none}, "........", Tree{"old": old}, Tree{}},
		{PowerCut{Done: 1, Kept: all}, "AB......", Tree{"old": old}, Tree{}},
		{PowerCut{Done: 2, Kept: none}, "AB......", Tree{"old": old}, Tree{}},
		{PowerCut{Done: 3, Torn: 3}, "AB......", Tree{"old": old, "t": file("123")}, Tree{}},
		{PowerCut{Done: 6, Kept: none}, "AB......", Tree{"old": old}, Tree{}},
		{PowerCut{Done: 6, Kept: all}, "AB......", Tree{"old": old, "t": file("1234"), "f": file("1234")}, Tree{}},
		{PowerCut{Done: 7, Kept: none}, "AB......", Tree{"old": old}, Tree{"w": file("w")}},
		{PowerCut{Done: 8, Kept: none}, "AB......", Tree{"old": old, "t": file("1234"), "f": file("1234")}, Tree{"w": file("w")}},
		{PowerCut{Done: 12, Kept: map[string]float64{"image": 0}}, "AB......", Tree{"old": old, "f": file("1234"), "u": file("5678")}, Tree{"w": file("w")}},
		{PowerCut{Done: 12, Kept: map[string]float64{"folder": 0}}, "ABCDEF..", Tree{"old": old, "f": file("1234"), "t": file("1234")}, Tree{"w": file("w")}},
	} {
		got := log.After(c.cut)
		want := State{map[string][]byte{"image": []byte(c.image)}, map[string]Tree{"folder": c.folder, "watched": c.watched}}
		if !got.Equal(want) {
			t.Errorf("%v: %v, want %v", c.cut, got, want)
		}
		if (got.Sum() == want.Sum()) != got.Equal(want) {
			t.Errorf("%v: sums do not tell equal states", c.cut)
		}
	}
}

func TestChanceLosesAnySetOfWhatIsNotSynced(t *testing.T) {
	log := recordAll(t)
	images, folders := map[string]int{}, map[string]int{}
	for seed := range uint64(400) {
		cut := PowerCut{Done: 12, Kept: map[string]float64{"image": 0.5, "folder": 0.5}, Seed: seed}
		s := log.After(cut)
		if !s.Equal(log.After(cut)) {
			t.Fatalf("%v: not repeatable", cut)
		}
		images[string(s.Images["image"])]++
		names, tree := "", s.Folders["folder"]
		for _, name := range []string{"f", "old", "t", "u"} {
			if _, found := tree[name]; found {
				names += name + " "
			}
		}
		folders[names]++
		if string(tree["f"].Bytes) != "1234" || string(tree["old"].Bytes) != "old" {
			t.Errorf("%v: what was synced is lost: %v", cut, tree)
		}
		if u, found := tree["u"]; found {
			folders["u is "+string(u.Bytes)]++
		}
	}
	if len(images) != 2 {
		t.Errorf("images %v", images)
	}
	for _, want := range []string{"f old ", "f old t ", "f old u ", "f old t u ", "u is ", "u is 56", "u is 5678", "u is 56\x00\x00", "u is \x00\x00\x00\x00"} {
		if folders[want] == 0 {
			t.Errorf("never seen: %q, in %v", want, folders)
		}
	}
}

func TestSectorsOfALongWriteAreLostOneByOne(t *testing.T) {
	log := NewLog()
	log.Image("image", make([]byte, 2048))
	f := log.File("image", NewRecordingFile(make([]byte, 2048)))
	b := make([]byte, 1024)
	for i := range b {
		b[i] = 1
	}
	if _, err := f.WriteAt(b, 256); err != nil {
		t.Fatal(err)
	}
	seen := map[[3]byte]bool{}
	for seed := range uint64(100) {
		got := log.After(PowerCut{Done: 1, Kept: map[string]float64{"image": 0.5}, Seed: seed}).Images["image"]
		seen[[3]byte{got[511], got[512], got[1024]}] = true
		if got[256] != got[511] || got[512] != got[1023] || got[1024] != got[1279] || got[255] != 0 || got[1280] != 0 {
			t.Fatalf("seed %d: a sector is torn", seed)
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d of 8 sets of three sectors", len(seen))
	}
}

func TestPowerCutsReachEachEffectEachLossAndEachTear(t *testing.T) {
	log := recordAll(t)
	perEffect, torn := map[int]int{}, map[int]int{}
	for c := range log.PowerCuts(CutOptions{Subsets: 2, Tears: 3, Seed: 1}) {
		if c.Torn > 0 {
			torn[c.Done]++
		} else {
			perEffect[c.Done]++
		}
	}
	if len(perEffect) != 13 {
		t.Errorf("%v", perEffect)
	}
	for done, n := range perEffect {
		if n != 1+1+2+2 {
			t.Errorf("%d losses at effect %d", n, done)
		}
	}
	// AB is torn at one place, CDEF at three, from both sides; files at one.
	if torn[0] != 2 || torn[3] != 1 || torn[8] != 6 || torn[11] != 1 || len(torn) != 4 {
		t.Errorf("torn %v", torn)
	}
}

func TestAPlannedErrorTakesThePlaceOfItsEffect(t *testing.T) {
	log, planned := NewLog(), errors.New("planned")
	log.Image("image", nil)
	inner := NewRecordingFile(nil)
	f := log.File("image", inner)
	log.Fail = func(e Effect) error {
		if e.Verb == Sync {
			return planned
		}
		return nil
	}
	if _, err := f.WriteAt([]byte("A"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, planned) || len(log.Effects()) != 1 || len(inner.Ops()) != 1 {
		t.Fatalf("%v, %v", err, log.Effects())
	}
}
