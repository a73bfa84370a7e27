package source

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
)

func TestAHeldImageNamesItsHolders(t *testing.T) {
	err := fmt.Errorf("disk vda: %w", &HeldError{Path: "/vm/a b.qcow2", Pids: []int{7, 9}, Commands: []string{"qemu-system-x86_64 -name web", ""}})
	for _, want := range []string{"/vm/a b.qcow2", "process 7 (qemu-system-x86_64 -name web)", "process 9", "shut the machine down"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	var held *HeldError
	if !errors.Is(err, ErrHeld) || !errors.Is(err, ErrUnusable) || !errors.As(err, &held) {
		t.Errorf("%v is not of the classes held and unusable", err)
	}
}

func TestAHeldImageWithoutVisibleHolderSaysHowToFindIt(t *testing.T) {
	err := &HeldError{Path: "/vm/it's a.qcow2"}
	if want := `fuser -v '/vm/it'\''s a.qcow2'`; !strings.Contains(err.Error(), want) {
		t.Errorf("%q does not say %q", err, want)
	}
	if want := "lsof /vm/a.qcow2`"; !strings.Contains((&HeldError{Path: "/vm/a.qcow2"}).Error(), want) {
		t.Errorf("a plain path is quoted, or not said")
	}
}

func TestNotResetReachesEveryReason(t *testing.T) {
	other := errors.New("no space")
	err := &NotReset{Disks: []DiskNotReset{{"vda", ErrReaders}, {"vdb", other}}}
	if !errors.Is(err, ErrReaders) || !errors.Is(err, other) {
		t.Errorf("%v hides a reason", err)
	}
	for _, want := range []string{"vda", "vdb", "no space", "the next run does it"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestAnUnusableSourceKeepsItsReason(t *testing.T) {
	err := &UsableError{Path: "/vm/a", Err: ErrReadOnly, Hint: "give it write permission"}
	if !errors.Is(err, ErrUnusable) || !errors.Is(err, ErrReadOnly) {
		t.Errorf("%v is not of the classes unusable and read-only", err)
	}
	if got, want := err.Error(), "/vm/a: image is read-only for us; give it write permission"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEvidenceIsFoundByName(t *testing.T) {
	e := Evidence{Disks: []DiskEvidence{{Name: "vda"}, {Name: "vdb", SizeBytes: 7}}}
	if d := e.Disk("vdb"); d == nil || d.SizeBytes != 7 {
		t.Errorf("disk vdb: %+v", d)
	}
	if d := e.Disk("vdc"); d != nil {
		t.Errorf("disk vdc: %+v", d)
	}
}

func TestOnlyOurCleanlySavedBitmapsAreUsable(t *testing.T) {
	name := ident.BitmapName{Family: ident.FamilyID{1}}
	for _, c := range []struct {
		b    BitmapEvidence
		want bool
	}{
		{BitmapEvidence{Family: name, Ours: true}, true},
		{BitmapEvidence{Family: name, Ours: true, Recording: true}, true},
		{BitmapEvidence{Family: name, Ours: true, InUse: true}, false},
		{BitmapEvidence{Family: name, Ours: true, Problem: "set bits beyond the end"}, false},
		{BitmapEvidence{Recording: true}, false},
	} {
		if got := c.b.Usable(); got != c.want {
			t.Errorf("%+v: usable %v", c.b, got)
		}
	}
}
