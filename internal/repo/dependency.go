package repo

import (
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// JoinDependencies gives the union of lists, ascending, each run once. Two hashes
// for one run are damage: one of the points is not what it was.
func JoinDependencies(lists ...[]format.Dependency) ([]format.Dependency, error) {
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b format.Dependency) int { return a.Run.Compare(b.Run) })
	all = slices.Compact(all)
	for i := 1; i < len(all); i++ {
		if all[i].Run == all[i-1].Run {
			return nil, fmt.Errorf("points disagree about the manifest of run %s: %w", all[i].Run, ErrDamaged)
		}
	}
	return all, nil
}

// PickDependencies gives those of all that are for the given runs, such as
// blockmap's Usage.Runs. A run that all does not have is an error.
func PickDependencies(all []format.Dependency, runs []ident.RunID) ([]format.Dependency, error) {
	picked := make([]format.Dependency, 0, len(runs))
	for _, run := range runs {
		i := slices.IndexFunc(all, func(d format.Dependency) bool { return d.Run == run })
		if i < 0 {
			return nil, fmt.Errorf("pick dependencies: a map refers to run %s, whose manifest is not known: %w", run, ErrDamaged)
		}
		picked = append(picked, all[i])
	}
	return JoinDependencies(picked)
}
