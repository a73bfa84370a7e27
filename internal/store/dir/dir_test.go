package dir_test

import (
	"testing"

	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/dir"
	"github.com/qbackup/qbackup/internal/store/storetest"
)

func openNew(t testing.TB, o dir.Options) *dir.Store {
	t.Helper()
	s, err := dir.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFolderKeepsThePromisesOfAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return openNew(t, dir.Options{}) })
}

func BenchmarkPutAndGetOf16MiB(b *testing.B) {
	storetest.Bench(b, openNew(b, dir.Options{}), store.NewBody(storetest.Bytes(1, 16<<20)))
}
