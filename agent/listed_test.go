package agent

import (
	"testing"

	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
)

func TestABlockWhoseStoredTwinIsGoneIsStoredAgain(t *testing.T) {
	const size = 300 * format.DefaultBlockBytes
	w := newWorld(t, newGhostDisk("vda", size, 1))
	content := make([]byte, 40*format.DefaultBlockBytes)
	_, _ = w.seed.Read(content)
	w.disks[0].write(0, content)
	cached := func(job *Job, _ *Options) {
		cache, err := repo.OpenIndexCache(w.stateDir+"/cache", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		o := w.repoOptions()
		o.Cache = cache
		if job.Repository, err = repo.Open(t.Context(), w.store, o); err != nil {
			t.Fatal(err)
		}
	}
	first := w.mustBackup(cached)

	// Written again as it was: nothing is stored while the pack is there.
	w.disks[0].write(0, content)
	same := w.mustBackup(cached)
	wantModes(t, same, incremental)
	if d := same.Disks[0]; d.StoredBytes != 0 || d.SkippedBytes != int64(len(content)) {
		t.Fatalf("%d bytes stored, %d left out", d.StoredBytes, d.SkippedBytes)
	}
	if err := w.mem.Delete(t.Context(), []string{format.PackKey("web", first.Point, 0)}); err != nil {
		t.Fatal(err)
	}
	w.disks[0].write(0, content)
	again := w.mustBackup(cached)
	if d := again.Disks[0]; d.SkippedBytes != 0 {
		t.Fatalf("%d bytes are left out that are stored nowhere", d.SkippedBytes)
	}
	w.forget(first.Point)
	w.forget(same.Point)
	if n := w.check(); n != 1 {
		t.Errorf("%d points, want 1", n)
	}
}
