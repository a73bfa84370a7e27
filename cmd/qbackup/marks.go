package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
)

// markFunc sets a mark on a point, or takes one back.
type markFunc func(context.Context, repo.MarkSpec) (changed bool, err error)

// marking is what a command does to points.
type marking struct {
	verb, done string
	mark       func(*repo.Repository) markFunc
	forgotten  bool // the points are among the forgotten ones
	both       bool // they may be, too
	exact      bool // only ids name them, or latest: no time, which means the point before it
	same       string
	dryRun     bool
}

func (p *program) unforgetCommand() *cobra.Command {
	return p.markCommand(&cobra.Command{
		Use:   "unforget --machine NAME POINT...",
		Short: "Bring forgotten restore points back",
		Long: `Bring restore points back that were forgotten less than six days ago. qbackup points --forgotten lists them. The policy that made
them go makes them go again at its next turn, unless they are pinned (qbackup pin).`,
		Example: `  qbackup points --machine web1 --forgotten
  qbackup unforget --machine web1 06h06an4b5qr1eq94nhtm58sbc`,
	}, marking{verb: "bring back", done: "brought back", same: "is not forgotten", forgotten: true, mark: func(r *repo.Repository) markFunc { return r.Unforget }})
}

func (p *program) pinCommand() *cobra.Command {
	return p.markCommand(&cobra.Command{
		Use:   "pin --machine NAME POINT...",
		Short: "Keep restore points from being forgotten",
		Long: `Pin restore points: no policy forgets them, and qbackup forget refuses to, until they are unpinned. A point is named by its
id or the beginning of it, a time, or latest. One that was forgotten less than six days ago is brought back.`,
		Example: `  qbackup pin --machine web1 latest`,
	}, marking{verb: "pin", done: "pinned", same: "was pinned before", both: true, mark: func(r *repo.Repository) markFunc { return r.Pin }})
}

func (p *program) unpinCommand() *cobra.Command {
	return p.markCommand(&cobra.Command{
		Use:     "unpin --machine NAME POINT...",
		Short:   "Leave pinned restore points to the policy again",
		Example: `  qbackup unpin --machine web1 06h06an4b5qr1eq94nhtm58sbc`,
	}, marking{verb: "unpin", done: "not pinned any more", same: "was not pinned", mark: func(r *repo.Repository) markFunc { return r.Unpin }})
}

func (p *program) markCommand(c *cobra.Command, m marking) *cobra.Command {
	var machine string
	c.Args = arguments(cobra.MinimumNArgs(1))
	c.RunE = func(c *cobra.Command, words []string) error {
		if machine == "" {
			return usagef("say whose points these are, with --machine")
		}
		return p.markPoints(c.Context(), machine, words, m)
	}
	c.Flags().StringVar(&machine, "machine", "", "the machine")
	return c
}

// marked is one point of what these commands say with --json.
type marked struct {
	Machine ident.MachineName `json:"machine"`
	Point   ident.RunID       `json:"point"`
	Changed bool              `json:"changed"` // false: it was so before, or --dry-run
}

// markPoints does something to the points that are named. All are found before any is changed.
func (p *program) markPoints(ctx context.Context, machine string, words []string, m marking) error {
	name, err := ident.ParseMachineName(machine)
	if err != nil {
		return usagef("%v", err)
	}
	repository, err := p.openRepository(ctx)
	if err != nil {
		return err
	}
	runs, err := findMarked(ctx, repository, name, words, m)
	if err != nil {
		return err
	}
	doc, known, err := repository.Machine(ctx, name)
	if err == nil && !known {
		err = fmt.Errorf("machine %s has points, and its own document is missing", name)
	}
	if err != nil {
		return err
	}
	list := []marked{}
	for _, run := range runs {
		if m.dryRun {
			p.say("%s %s: would be %s", name, run, m.done)
			list = append(list, marked{name, run, false})
			continue
		}
		changed, err := m.mark(repository)(ctx, repo.MarkSpec{Machine: name, MachineID: doc.ID, Run: run, By: "the operator", Host: hostname()})
		if err != nil {
			return fmt.Errorf("%s: %w", m.verb, err)
		}
		list = append(list, marked{name, run, changed})
		if changed {
			p.say("%s %s: %s", name, run, m.done)
		} else {
			p.say("%s %s: %s", name, run, m.same)
		}
	}
	if p.json {
		return p.printJSON(list)
	}
	return nil
}

func findMarked(ctx context.Context, repository *repo.Repository, name ident.MachineName, words []string, m marking) (runs []ident.RunID, err error) {
	for _, word := range words {
		var run ident.RunID
		if m.forgotten {
			run, err = findForgotten(ctx, repository, name, word)
		} else {
			run, err = findPoint(ctx, repository, name, word)
		}
		if err != nil && m.both {
			if hidden, notThereEither := findForgotten(ctx, repository, name, word); notThereEither == nil {
				run, err = hidden, nil
			}
		}
		if err == nil && m.exact && word != "latest" && !strings.HasPrefix(run.String(), strings.ToLower(word)) {
			err = usagef("%q is no id; to %s a point, name it by its id or the beginning of it, or latest", word, m.verb)
		}
		if err != nil {
			return nil, err
		}
		runs = append(runs, run)
	}
	return runs, nil
}

// findForgotten finds a forgotten point by its id, or the beginning of it.
func findForgotten(ctx context.Context, repository *repo.Repository, machine ident.MachineName, word string) (ident.RunID, error) {
	tombs, err := repository.Tombstones(ctx, machine)
	if err != nil {
		return ident.RunID{}, err
	}
	var matches []ident.RunID
	for run := range tombs {
		if strings.HasPrefix(run.String(), strings.ToLower(word)) {
			matches = append(matches, run)
		}
	}
	switch len(matches) {
	case 0:
		return ident.RunID{}, fmt.Errorf("machine %s has no forgotten point %q; qbackup points --forgotten lists them", machine, word)
	case 1:
		return matches[0], nil
	}
	return ident.RunID{}, fmt.Errorf("%d forgotten points of machine %s begin with %q; give more of the id", len(matches), machine, word)
}
