package target

import (
	"errors"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/source/offline"
)

func TestImagesAreNamedByTheirFilesOrBySayingSo(t *testing.T) {
	got, err := parseImages([]string{"/vm/web1.qcow2", "data=/vm/d=1.img", "raw:/dev/vg0/mail", "/vm=1/x.qcow2"})
	want := []offline.Image{
		{Name: "web1", Path: "/vm/web1.qcow2"}, {Name: "data", Path: "/vm/d=1.img"},
		{Name: "mail", Path: "/dev/vg0/mail", Raw: true}, {Name: "x", Path: "/vm=1/x.qcow2"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]string{{""}, {"a="}, {"raw:"}, {"/a/x.qcow2", "/b/x.qcow2"}, {"-x=/vm/a.qcow2"}} {
		if got, err := parseImages(bad); !errors.Is(err, ErrSpec) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func TestAMachineIsNamedByItsOnlyImage(t *testing.T) {
	one, two := []offline.Image{{Path: "/vm/Web1.qcow2"}}, []offline.Image{{Path: "/vm/a"}, {Path: "/vm/b"}}
	if name, err := machineName("", one); err != nil || name != "web1" {
		t.Errorf("%q, %v", name, err)
	}
	for _, bad := range []struct {
		name   string
		images []offline.Image
	}{{"", nil}, {"", two}, {"Web 01", two}, {"", []offline.Image{{Path: "/vm/..qcow2"}}}} {
		if name, err := machineName(bad.name, bad.images); !errors.Is(err, ErrSpec) {
			t.Errorf("%+v: %q, %v", bad, name, err)
		}
	}
}

func TestASpecThatContradictsItselfIsRefused(t *testing.T) {
	for _, bad := range []Spec{
		{},
		{Images: []string{"/vm/a"}}, // no freeze
		{Images: []string{"/vm/a"}, Freeze: "yes"}, // an unknown one
		{Domain: "web1", Monitor: "/run/web1", Freeze: FreezeTry},
		{Domain: "web1", Images: []string{"/vm/a"}, Freeze: FreezeTry},
		{Monitor: "/run/web1", Freeze: FreezeRequire},
	} {
		if got, err := new(Host).Choose(t.Context(), bad); !errors.Is(err, ErrSpec) {
			t.Errorf("%+v: %+v, %v", bad, got, err)
		}
	}
}
