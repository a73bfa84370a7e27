package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// dependenciesMax is how many runs a map may depend on before it is written anew,
// far below what a manifest can name.
const dependenciesMax = format.MaxDependencies / 4

// tracker notes which runs a map that is made from nothing refers to.
type tracker struct {
	setter
	runs map[ident.RunID]bool
}

// Set implements setter.
func (t *tracker) Set(ctx context.Context, span blockmap.Span) error {
	if !span.Zero {
		t.runs[span.Loc.Run] = true
	}
	return t.setter.Set(ctx, span)
}

// dependencies gives the runs that the new maps refer to, with their manifests. A
// map made from nothing refers to what was set; one that shares nodes with its
// base refers to no more than the base did.
func dependencies(maps []*mapping, own ident.RunID) ([]format.Dependency, error) {
	var lists [][]format.Dependency
	for _, m := range maps {
		if m.disk.point == nil {
			continue
		}
		all := m.disk.point.Dependencies()
		if m.tracker != nil {
			var runs []ident.RunID
			for run := range m.tracker.runs {
				if run != own {
					runs = append(runs, run)
				}
			}
			var err error
			if all, err = repo.PickDependencies(all, runs); err != nil {
				return nil, fmt.Errorf("disk %s: %w", m.disk.evidence.Name, err)
			}
		}
		lists = append(lists, all)
	}
	return repo.JoinDependencies(lists...)
}

// condemned gives the packs and maps that verifications found damaged.
func (k *knowledge) condemned(ctx context.Context) (*repo.PackSet, error) {
	if k.bad != nil || k.b.isNew {
		return k.bad, nil
	}
	bad := &repo.PackSet{}
	if err := k.b.job.Repository.Condemn(ctx, k.b.job.Machine, bad); err != nil {
		return nil, err
	}
	k.bad = bad
	return bad, nil
}

// damagedBlock finds a block of a point's disk that lies in a condemned pack, or a
// part of its map that cannot be read: what builds on the point would inherit it. The
// map is walked only when a run that the point depends on has something condemned.
func (k *knowledge) damagedBlock(ctx context.Context, run ident.RunID, disk string) (string, error) {
	bad, err := k.condemned(ctx)
	if err != nil || bad.Empty() {
		return "", err
	}
	d, err := k.disk(ctx, run, disk)
	if err != nil {
		return "", err
	}
	concerned := false
	for _, dep := range k.opened[run].Dependencies() {
		m, err := k.opened[run].RunManifest(ctx, dep.Run)
		if errors.Is(err, repo.ErrDamaged) {
			return err.Error(), nil
		}
		if err != nil {
			return "", err
		}
		concerned = concerned || bad.HasMaps(dep.Run)
		for _, p := range m.Packs {
			concerned = concerned || bad.Has(dep.Run, p.Seq)
		}
	}
	if !concerned {
		return "", nil
	}
	for span, err := range d.Map().Spans(ctx, 0, d.Map().Blocks()) {
		if errors.Is(err, repo.ErrDamaged) {
			return err.Error(), nil
		}
		if err != nil {
			return "", err
		}
		if !span.Zero && bad.Has(span.Loc.Run, span.Loc.Pack) {
			return "a verification found pack " + format.PackKey(k.b.job.Machine, span.Loc.Run, span.Loc.Pack) + " damaged", nil
		}
	}
	return "", nil
}

// without gives the packs that a rescan must not refer to: those that are missing
// or of a wrong size, and those that verifications condemned.
func (b *backup) without(ctx context.Context, deps []format.Dependency) (*repo.PackSet, error) {
	bad, err := b.job.Repository.DependencyListed(ctx, b.job.Machine, deps)
	if err != nil {
		return nil, fmt.Errorf("list the packs to refer to: %w", err)
	}
	if err := b.job.Repository.Condemn(ctx, b.job.Machine, bad); err != nil {
		return nil, err
	}
	return bad, nil
}

// knownHashes serves to leave out blocks that are stored already. An increment
// asks this host's cache only: a request per dirty block costs more than it saves.
func (b *backup) knownHashes(ctx context.Context, d *diskPlan) (repo.Hashes, error) {
	deps := d.point.Dependencies()
	if d.Mode == format.ModeIncremental {
		return &listedHashes{
			Hashes: b.job.Repository.CachedHashes(b.job.Machine, deps, nil),
			runs:   map[ident.RunID]*repo.PackSet{},
			list: func(ctx context.Context, run ident.RunID) (*repo.PackSet, error) {
				one, err := repo.PickDependencies(deps, []ident.RunID{run})
				if err != nil {
					return nil, err
				}
				return b.without(ctx, one)
			},
		}, nil
	}
	without, err := b.without(ctx, deps)
	if err != nil {
		return nil, err
	}
	return b.job.Repository.FetchedHashes(b.job.Machine, deps, without), nil
}
