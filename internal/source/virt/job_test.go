package virt

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
)

func TestJobsAreTold(t *testing.T) {
	for text, want := range map[string]string{
		"Job type:         None        \n\n":                                        "",
		"Job type:         Completed   \nOperation:        Backup      \n":          "",
		"Job type:         Unbounded   \nOperation:        Backup      \nTime: 1\n": "Backup",
		"Job type:         Bounded     \nOperation:        Outgoing migration\n":    "Outgoing migration",
		"Job type:         Unbounded   \n":                                          "Unknown",
		"":                                                                          "",
	} {
		if got := parseJob(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestAJobIsKnownByItsScratchFiles(t *testing.T) {
	name, _ := ident.ParseBitmapName(ourBitmap)
	c := &cut{machine: New(Options{}), name: name, socket: &socketPlace{path: "/run/a&b/nbd"}}
	dir := filepath.Join(t.TempDir(), "a<b>'c")
	for _, target := range []string{"vda", "vdb"} {
		files, err := parseBackup(marshal(backupXML{Mode: "pull", Disks: []backupDiskXML{{Name: target, Scratch: &backupTarget{scratchPath(dir, name, target)}}, {Name: "hda"}}}))
		if err != nil || !slices.Equal(files, []string{filepath.Join(dir, ourBitmap+"-"+target+".qcow2")}) {
			t.Fatalf("%q, %v", files, err)
		}
		if !belongs(files, c.own) || belongs(files, func(n ident.BitmapName) bool { return n.String() == ourBitmap2 }) {
			t.Error("the job is not known, or taken for another")
		}
	}
	if belongs([]string{"/vm/x.qcow2", "/vm/" + ourBitmap, "/vm/" + ourBitmap[:60] + "-vda.qcow2"}, func(ident.BitmapName) bool { return true }) {
		t.Error("files of others are taken for ours")
	}
}

func TestOnlyOurScratchFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	stay := []string{"x.qcow2", ourBitmap2 + "-vda.qcow2", ourBitmap + "-vda.raw", ourBitmap}
	for _, name := range append(stay, ourBitmap+"-vda.qcow2", ourBitmap+"-vdb.qcow2") {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	name, _ := ident.ParseBitmapName(ourBitmap)
	if err := removeScratch(dir, func(n ident.BitmapName) bool { return n == name }); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	slices.Sort(stay)
	if err != nil || !slices.Equal(left, stay) {
		t.Errorf("left are %q, %v", left, err)
	}
	if err := removeScratch(filepath.Join(dir, "none"), nil); err != nil {
		t.Error(err)
	}
}

func TestDefinitionsOfCheckpointsComeBack(t *testing.T) {
	name, _ := ident.ParseBitmapName(ourBitmap)
	want := checkpoint{parent: "a <b>", disks: []string{"vda", "vdb"}}
	got, err := parseCheckpoint(define(name, want, true))
	if err != nil || got.parent != want.parent || !slices.Equal(got.disks, want.disks) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = parseCheckpoint(`<domaincheckpoint><name>x</name><disks><disk name='vdb' checkpoint='bitmap' bitmap='x'/><disk name='vda'/><disk name='hda' checkpoint='no'/></disks></domaincheckpoint>`)
	if err != nil || !slices.Equal(got.disks, want.disks) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseCheckpoint("<domain/>"); err == nil {
		t.Error("something else was accepted")
	}
}

func FuzzParseBackup(f *testing.F) {
	f.Add(marshal(backupXML{Mode: "pull", Disks: []backupDiskXML{{Name: "vda", Scratch: &backupTarget{"/s/" + ourBitmap + "-vda.qcow2"}}}}))
	f.Fuzz(func(t *testing.T, text string) {
		files, err := parseBackup(text)
		if err == nil {
			belongs(files, func(n ident.BitmapName) bool { return n.Stamp.IsZero() })
		}
	})
}

func FuzzParseCheckpoint(f *testing.F) {
	name, _ := ident.ParseBitmapName(ourBitmap)
	f.Add(define(name, checkpoint{parent: "p", disks: []string{"vda"}}, true))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCheckpoint(text)
		if err == nil && !slices.IsSorted(c.disks) {
			t.Fatalf("%+v", c)
		}
	})
}

func FuzzParseText(f *testing.F) {
	f.Add("running (booted)")
	f.Add("Job type: Unbounded\nOperation: Backup\n")
	f.Fuzz(func(t *testing.T, text string) {
		parseJob(text)
		s := parseState(text)
		_ = s.check("domain x")
	})
}
