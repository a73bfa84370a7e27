package repo

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store/fault"
)

// cachedWorld is a world with a local cache.
func cachedWorld(t *testing.T) (*world, string) {
	t.Helper()
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "cache")
	cache, err := OpenIndexCache(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	w.cache = cache
	w.reopen()
	return w, dir
}

// tally asks for the hash of every data block of a disk.
func tally(t *testing.T, w *world, p *Point, h Hashes) (known, unknown int) {
	t.Helper()
	ctx := context.Background()
	d, err := p.Disk("root")
	if err != nil {
		t.Fatal(err)
	}
	for s, err := range d.Map().Spans(ctx, 0, d.Map().Blocks()) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range s.Count {
			if s.Zero {
				continue
			}
			loc := s.Loc
			loc.Ordinal += uint32(i)
			got, ok, err := h.BlockHash(ctx, loc)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				unknown++
				continue
			}
			known++
			block := make([]byte, testBlock)
			copy(block, w.points[p.record.Run][(s.First+i)*testBlock:])
			if got != w.repo.Hasher().Sum(block) {
				t.Fatalf("block %d has another hash", s.First+i)
			}
		}
	}
	return known, unknown
}

func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCachedHashesMakeNoRequest(t *testing.T) {
	w, _ := cachedWorld(t)
	p := threePoints(w)[2]
	w.reopen() // nothing in memory: all from the folder
	p = w.open(p.record.Run)
	_, unknown := tally(t, w, p, w.repo.FetchedHashes(testMachine, p.Dependencies(), nil)) // brings the nodes
	if unknown != 0 {
		t.Fatalf("%d blocks are unknown", unknown)
	}
	counted := fault.New(w.mem, 1)
	w.repo.store = counted
	known, unknown := tally(t, w, p, w.repo.CachedHashes(testMachine, p.Dependencies(), nil))
	if known == 0 || unknown != 0 || counted.Calls(fault.Any) != 0 {
		t.Errorf("%d known, %d unknown, %d requests", known, unknown, counted.Calls(fault.Any))
	}
}

func TestWithoutACacheHashesAreUnknownOrFetched(t *testing.T) {
	w := newWorld(t)
	p := threePoints(w)[2]
	w.reopen()
	p = w.open(p.record.Run)
	d, err := p.Disk("root")
	if err != nil {
		t.Fatal(err)
	}
	for range d.Map().Spans(context.Background(), 0, d.Map().Blocks()) {
		continue // brings the nodes
	}
	counted := fault.New(w.mem, 1)
	w.repo.store = counted
	if known, unknown := tally(t, w, p, w.repo.CachedHashes(testMachine, p.Dependencies(), nil)); known != 0 || unknown == 0 || counted.Calls(fault.Any) != 0 {
		t.Errorf("cached: %d known, %d unknown, %d requests", known, unknown, counted.Calls(fault.Any))
	}
	if known, unknown := tally(t, w, p, w.repo.FetchedHashes(testMachine, p.Dependencies(), nil)); known == 0 || unknown != 0 {
		t.Errorf("fetched: %d known, %d unknown", known, unknown)
	}
	if known, _ := tally(t, w, p, w.repo.FetchedHashes(testMachine, nil, nil)); known != 0 {
		t.Errorf("%d blocks of runs that were not named", known)
	}
}

func TestASpoiledCacheFileIsDroppedAndAMiss(t *testing.T) {
	w, dir := cachedWorld(t)
	p := threePoints(w)[2]
	for _, path := range files(t, dir) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, spoiled := range map[string][]byte{"flipped": append([]byte{b[0] ^ 1}, b[1:]...), "cut": b[:len(b)-1], "empty": {}} {
			if err := os.WriteFile(path, spoiled, 0o600); err != nil {
				t.Fatal(err)
			}
			w.reopen()
			q := w.open(p.record.Run)
			if _, unknown := tally(t, w, q, w.repo.FetchedHashes(testMachine, q.Dependencies(), nil)); unknown != 0 {
				t.Errorf("%s %s: %d unknown", path, name, unknown)
			}
			w.check(p.record.Run)
			if now, err := os.ReadFile(path); err != nil || string(now) != string(b) {
				t.Errorf("%s %s: it was not replaced: %v", path, name, err)
			}
		}
	}
}

func TestTheCacheIsPrivate(t *testing.T) {
	w, dir := cachedWorld(t)
	threePoints(w)
	all := files(t, dir)
	if len(all) == 0 {
		t.Fatal("nothing was kept")
	}
	for _, path := range all {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		folder, err := os.Stat(filepath.Dir(path))
		if err != nil || folder.Mode().Perm() != 0o700 {
			t.Errorf("folder of %s: %v, %v", path, folder.Mode(), err)
		}
		if strings.Contains(path, "tmp-") {
			t.Errorf("%s was left behind", path)
		}
	}
}

func TestTheCacheKeepsToItsLimitAndDropsTheOldestFirst(t *testing.T) {
	dir := t.TempDir()
	const limit = 64 << 10
	c, err := OpenIndexCache(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now().Add(-100 * time.Hour)
	for i := range 200 {
		name := filepath.Join("repo", "vm", string(rune('a'+i%26)), packFile(uint32(i)))
		c.write(name, make([]byte, 1000))
		// The clock of a file system may be too coarse for the order.
		if err := os.Chtimes(filepath.Join(dir, name), start, start.Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	var total int64
	left := files(t, dir)
	for _, path := range left {
		if info, err := os.Stat(path); err == nil {
			total += info.Size()
		}
		if old := filepath.Base(path) < packFile(130); old {
			t.Errorf("%s is older than what was dropped", path)
		}
	}
	if total > limit+limit/trimShare || len(left) < 40 {
		t.Errorf("%d bytes in %d files are left", total, len(left))
	}
	folders, err := os.ReadDir(filepath.Join(dir, "repo", "vm"))
	if err != nil || len(folders) > 26 {
		t.Errorf("folders: %v, %v", folders, err)
	}
	c.write("big", make([]byte, limit+1))
	if _, ok := c.read("big"); ok {
		t.Error("a file larger than the cache was kept")
	}
}

func TestUsingAFileMakesItYoung(t *testing.T) {
	dir := t.TempDir()
	c, err := OpenIndexCache(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	c.write("a/b", []byte("x"))
	old := time.Now().Add(-50 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "a/b"), old, old); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.read("a/b"); !ok {
		t.Fatal("not there")
	}
	if info, err := os.Stat(filepath.Join(dir, "a/b")); err != nil || time.Since(info.ModTime()) > time.Hour {
		t.Errorf("time %v, %v", info.ModTime(), err)
	}
}

func TestACacheThatCannotBeWrittenIsNoError(t *testing.T) {
	w, dir := cachedWorld(t)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.check(threePoints(w)[2].record.Run)
	if _, err := OpenIndexCache(filepath.Join(dir, "below"), 1<<20); err == nil {
		t.Error("a cache below a file was opened")
	}
}

func TestPacksThatAreMissingResizedOrCondemnedAreNotReliedOn(t *testing.T) {
	ctx := context.Background()
	w, _ := cachedWorld(t)
	p := threePoints(w)[2]
	runs := []ident.RunID{p.Dependencies()[0].Run, p.Dependencies()[1].Run, p.Dependencies()[2].Run}
	bad, err := w.repo.DependencyListed(ctx, testMachine, p.Dependencies())
	if err != nil || !bad.Empty() {
		t.Fatalf("of a sound repository: %+v, %v", bad, err)
	}
	w.must(w.mem.Delete(ctx, []string{format.PackKey(testMachine, runs[0], 1)}))
	w.mem.Replace(format.PackKey(testMachine, runs[0], 0), []byte("short"))
	w.mem.Replace(format.ManifestKey(testMachine, runs[1]), []byte("spoiled"))
	verdict := format.Verdict{
		Identity: w.repo.identity(testMachine, w.machine.ID, runs[2]), Level: "data", Time: w.clock(),
		Damage: []format.Finding{{Key: format.PackKey(testMachine, runs[2], 0), Offset: -1, Error: "spoiled"}},
	}
	body, err := format.AppendVerdict(nil, &verdict)
	w.must(err)
	put(t, w.mem, format.VerdictKey(testMachine, runs[2], 0), string(body))
	put(t, w.mem, format.VerdictKey(testMachine, runs[2], 1), "spoiled")
	w.cache = nil
	w.reopen()
	if bad, err = w.repo.DependencyListed(ctx, testMachine, p.Dependencies()); err != nil {
		t.Fatal(err)
	}
	w.must(w.repo.Condemn(ctx, testMachine, bad))
	for _, c := range []struct {
		run  ident.RunID
		seq  uint32
		want bool
	}{{runs[0], 0, true}, {runs[0], 1, true}, {runs[0], 2, false}, {runs[1], 0, true}, {runs[2], 0, true}, {runs[2], 1, false}} {
		if bad.Has(c.run, c.seq) != c.want {
			t.Errorf("pack %d of %s: %v", c.seq, c.run, !c.want)
		}
	}
	h := w.repo.FetchedHashes(testMachine, p.Dependencies(), bad)
	for _, loc := range []format.Location{{Run: runs[0], Pack: 1}, {Run: runs[1]}, {Run: runs[2]}} {
		if _, known, err := h.BlockHash(ctx, loc); known || err != nil {
			t.Errorf("block %s: %v, %v", loc, known, err)
		}
	}
	if _, known, err := h.BlockHash(ctx, format.Location{Run: runs[0], Pack: 2}); !known || err != nil {
		t.Errorf("a sound block: %v, %v", known, err)
	}
	var none *PackSet
	if none.Has(runs[0], 0) || !none.Empty() {
		t.Error("no set has a pack")
	}
	w.repo.store = fault.New(w.mem, 1, fault.Down(1))
	if _, err := w.repo.DependencyListed(ctx, testMachine, p.Dependencies()); err == nil {
		t.Error("a store that cannot be asked lists nothing, and that was believed")
	}
}

var _ blockmap.Source = nodes{}
