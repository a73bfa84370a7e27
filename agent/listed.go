package agent

import (
	"context"
	"sync"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// listedHashes knows a hash only when its pack is still there: the first block of a
// run that would be left out has the run's data listed, once. So a block whose pack
// is gone or cut short is stored again, and runs that no dirty block equals cost
// nothing.
type listedHashes struct {
	repo.Hashes
	list func(ctx context.Context, run ident.RunID) (*repo.PackSet, error)

	mu   sync.Mutex
	runs map[ident.RunID]*repo.PackSet
}

// BlockHash implements repo.Hashes.
func (l *listedHashes) BlockHash(ctx context.Context, loc format.Location) (format.BlockHash, bool, error) {
	hash, known, err := l.Hashes.BlockHash(ctx, loc)
	if err != nil || !known {
		return hash, false, err
	}
	bad, err := l.missing(ctx, loc.Run)
	if err != nil || bad.Has(loc.Run, loc.Pack) {
		return format.BlockHash{}, false, err
	}
	return hash, true, nil
}

func (l *listedHashes) missing(ctx context.Context, run ident.RunID) (*repo.PackSet, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bad, known := l.runs[run]; known {
		return bad, nil
	}
	bad, err := l.list(ctx, run)
	if err != nil {
		return nil, err
	}
	l.runs[run] = bad
	return bad, nil
}
