package repo

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store/dir"
)

var update = flag.Bool("update", false, "write the golden repository anew")

const (
	goldenDir  = "testdata/golden-v1"
	goldenList = "testdata/golden-v1.points"
)

// TestTheGoldenRepositoryRestores opens a repository that an earlier version of
// this code wrote. It is never written anew because a test fails: what is stored
// out there does not change either.
func TestTheGoldenRepositoryRestores(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	ctx := context.Background()
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(goldenDir)); err != nil {
		t.Fatal(err)
	}
	s, err := dir.Open(folder, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(ctx, s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	names, err := r.Machines(ctx)
	if err != nil || !slices.Equal(names, []ident.MachineName{testMachine}) {
		t.Fatalf("machines %v, %v", names, err)
	}
	points, err := r.Points(ctx, testMachine)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, info := range points {
		if info.Err != nil {
			t.Fatal(info.Err)
		}
		fmt.Fprintf(&got, "%s %s\n", info.Run, restoredHash(t, r, info.Run))
	}
	want, err := os.ReadFile(goldenList)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("restored points:\n%swant:\n%s", got.String(), want)
	}
}

func restoredHash(t *testing.T, r *Repository, run ident.RunID) format.Hash {
	t.Helper()
	p, err := r.OpenPoint(context.Background(), testMachine, run)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Disk("root")
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, d.Size())
	if n, err := d.ReadAt(whole, 0); n != len(whole) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	return format.SumHash(whole)
}

// writeGolden makes a full point, an increment with zeros on a disk that grew, and
// an aborted run.
func writeGolden(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	if err := os.RemoveAll(goldenDir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(goldenDir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := dir.Open(goldenDir, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := emptyWorld(t)
	w.store = s
	w.make()
	one := w.backup(nil, 20*testBlock+777, change{0, 3, 1}, change{17, 4, 2})
	two := w.backup(one, 1100*testBlock, change{1, 1, 0}, change{18, 1, 3}, change{1099, 1, 3})
	dead, err := w.begin(ctx, two)
	if err != nil {
		t.Fatal(err)
	}
	w.must(dead.run.Abort(ctx, "the golden repository"))
	var list strings.Builder
	for _, p := range []*Point{one, two} {
		fmt.Fprintf(&list, "%s %s\n", p.record.Run, format.SumHash(w.points[p.record.Run]))
	}
	if err := os.WriteFile(goldenList, []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	empty, err := filepath.Glob(goldenDir + "/*")
	if err != nil || len(empty) == 0 {
		t.Fatalf("the golden repository is empty: %v", err)
	}
}
