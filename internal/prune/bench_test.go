package prune

import (
	"context"
	"testing"

	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/repo/repotest"
	"github.com/qbackup/qbackup/internal/store"
)

// BenchmarkPruneOfManyPacks looks twice at a machine with 200,000 packs of a run that was aborted (3 TiB in packs of 16 MiB),
// and deletes none of them.
func BenchmarkPruneOfManyPacks(b *testing.B) {
	const packs = 200_000
	w := repotest.New(b)
	a := w.Begin(web, w.Backup(web, [16]byte{}, repotest.DiskSpec{Name: "root", SizeBytes: 8 * repotest.Block, Changes: repotest.Changes(0, 8, 1)}))
	for seq := range uint32(packs) {
		w.Put(format.PackKey(web, a.Run.ID(), seq), []byte("x"), nil)
	}
	if err := a.Run.Abort(context.Background(), "test"); err != nil {
		b.Fatal(err)
	}
	keeps := keeping{w.Mem}
	for b.Loop() {
		reports, err := Run(context.Background(), w.Through(keeps).Repo, Options{By: "test"})
		if err != nil || len(reports[0].Victims) < packs {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/packs, "ns/pack")
}

// keeping forgets to delete.
type keeping struct{ store.Store }

func (keeping) Delete(context.Context, []string) error { return nil }
