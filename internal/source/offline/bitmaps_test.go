package offline

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/qbackup/qbackup/internal/qcow2"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/testtool"
)

func TestBitmapsAreListedAndEditedUnderQEMUsLocks(t *testing.T) {
	testtool.Need(t, "qemu-img")
	testtool.Need(t, "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	testtool.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
	testtool.Run(t, "qemu-img", "bitmap", "--add", "-g", "32k", path, "theirs")
	add := func(e *qcow2.Editor) error {
		return e.Replace([]qcow2.BitmapSpec{{Name: "mine", GranularityBytes: 65536, Enabled: true}}, nil)
	}
	if err := EditBitmaps(path, add); err != nil {
		t.Fatal(err)
	}
	testtool.Run(t, "qemu-io", "-f", "qcow2", "-c", "write 1M 100k", path)
	list, err := ListBitmaps(t.Context(), path)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for i, want := range []int64{4 * 32768, 2 * 65536} {
		if list[i].DirtyBytes != want || list[i].Problem != "" {
			t.Errorf("%s: %d dirty bytes, want %d (%s)", list[i].Name, list[i].DirtyBytes, want, list[i].Problem)
		}
	}
	if err := EditBitmaps(path, func(e *qcow2.Editor) error { return e.Reset("theirs") }); err != nil {
		t.Fatal(err)
	}
	if list, err = ListBitmaps(t.Context(), path); err != nil || list[0].DirtyBytes != 0 {
		t.Errorf("after the reset: %+v, %v", list, err)
	}
	if err := EditBitmaps(path, func(e *qcow2.Editor) error { return e.Reset("absent") }); !errors.Is(err, qcow2.ErrNotFound) || !errors.Is(err, source.ErrUnusable) {
		t.Errorf("a bitmap that is not there: %v", err)
	}
	testtool.Run(t, "qemu-img", "check", path)
}
