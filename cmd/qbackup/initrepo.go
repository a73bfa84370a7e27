package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/agent"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store/probe"
)

func (p *program) initCommand() *cobra.Command {
	var blockBytes int64
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a repository, or see that it is there",
		Long: `Make a repository at the place that --repo names. One that is there already is no error and is not changed. What the
store really promises is tried out on objects below probe/, which stay.`,
		Example: `  qbackup init --repo /srv/backup
  qbackup init --repo s3:https://s3.example.com/bucket/prefix`,
		Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return p.init(c.Context(), blockBytes) },
	}
	c.Flags().Int64Var(&blockBytes, "block-bytes", format.DefaultBlockBytes, "block size of a new repository: a power of two from 16384 to 1048576")
	return c
}

// initialised is what init --json says.
type initialised struct {
	MessageType string              `json:"message_type"` // "initialised"
	Repository  format.RepositoryID `json:"repository"`
	Place       string              `json:"place"`
	Created     bool                `json:"created"`
	BlockBytes  int64               `json:"block_bytes"`
	CreateOnly  bool                `json:"create_only"` // the store refuses to overwrite, also when several try at once
	Problems    []string            `json:"problems,omitempty"`
}

func (p *program) init(ctx context.Context, blockBytes int64) error {
	if err := format.CheckBlockBytes(blockBytes); err != nil {
		return usagef("--block-bytes: %v", err)
	}
	s, err := p.openStore(ctx, true)
	if err != nil {
		return err
	}
	// Nothing is tried out at a place that holds something else.
	if _, err := repo.Open(ctx, s, repo.Options{}); err != nil && !errors.Is(err, repo.ErrNoRepository) {
		return err
	}
	verdict, err := probe.Full(ctx, s)
	if err != nil {
		return fmt.Errorf("try out the store: %w", err)
	}
	repository, created, err := repo.Init(ctx, s, repo.InitOptions{BlockBytes: blockBytes})
	if err != nil {
		return err
	}
	if local, err := p.openState(false); err != nil {
		p.note("the verdict on the store cannot be kept on this host: %v", err)
	} else if err := agent.KeepVerdict(local.Repository(repository.ID()), verdict, true); err != nil {
		p.note("%v", err)
	}
	for _, problem := range verdict.Problems {
		p.warn("%s", problem)
	}
	out := initialised{"initialised", repository.ID(), p.repository, created, repository.BlockBytes(), verdict.Exclusive(), verdict.Problems}
	if p.json {
		return p.printJSON(out)
	}
	if created {
		p.say("made repository %s at %s", out.Repository, out.Place)
	} else {
		p.say("repository %s is at %s already", out.Repository, out.Place)
	}
	return nil
}
