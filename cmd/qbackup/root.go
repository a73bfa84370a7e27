package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/qbackup/qbackup/configs"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/store/location"
	"github.com/qbackup/qbackup/internal/store/observe"
	"github.com/qbackup/qbackup/internal/store/retry"
)

// indexCacheBytes bounds the pack indexes that are kept on the local disk.
const indexCacheBytes = 2 << 30

// program is one invocation: its streams and the global flags.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	configFile string
	opened     format.RepositoryID            // zero: none was opened
	config     atomic.Pointer[configs.Config] // nil: the command reads none

	repository string
	stateDir   string
	storeStats *observe.Stats      // of this process's requests to the store
	keeping    sync.Mutex          // guards what follows, and opened
	kept       state.StoreCounters // of storeStats: what is written down already
	json       bool
	quiet      bool
	verbose    int
	retryFor   time.Duration
}

// errUsage is the class of wrong invocations.
var errUsage = errors.New("usage")

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

func (p *program) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:                        "qbackup",
		SuggestionsMinimumDistance: 2,
		Short:                      "Incremental backups of QEMU disks from dirty bitmaps to an object store",
		Long: `qbackup reads the dirty bitmaps that QEMU keeps in qcow2 images, stores the changed clusters as complete restore
points in a folder or an S3 bucket, and then empties the bitmaps, safely at every instant.

  qbackup -r /srv/backup init
  qbackup -r /srv/backup backup /var/lib/libvirt/images/web1.qcow2
  qbackup -r /srv/backup points
  qbackup -r /srv/backup restore --machine web1 --to web1-restored.qcow2 --format qcow2`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		RunE:              unknownCommand,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return p.configure(c) },
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&p.configFile, "config", "c", "", "configuration file ($QBACKUP_CONFIG; "+configs.DefaultPath+" where it exists)")
	flags.StringVarP(&p.repository, "repo", "r", os.Getenv("QBACKUP_REPOSITORY"), "repository: a folder, s3://BUCKET/PREFIX or s3:http(s)://HOST:PORT/BUCKET/PREFIX ($QBACKUP_REPOSITORY)")
	flags.Lookup("repo").DefValue = "" // what the environment holds is not for a help page
	flags.StringVar(&p.stateDir, "state-dir", "", "where this host remembers its runs ($QBACKUP_STATE_DIR, $STATE_DIRECTORY, else /var/lib/qbackup)")
	flags.BoolVar(&p.json, "json", false, "print JSON lines")
	flags.BoolVarP(&p.quiet, "quiet", "q", false, "print only errors, warnings and what was asked for")
	flags.DurationVar(&p.retryFor, "retry-for", 15*time.Minute, "how long a store that does not answer is asked again")
	flags.CountVarP(&p.verbose, "verbose", "v", "say of every retry why the program waits")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%v; see %s --help", err, c.CommandPath())
	})
	root.AddCommand(
		p.initCommand(), p.backupCommand(), p.runCommand(), p.agentCommand(), p.statusCommand(), p.pointsCommand(), p.restoreCommand(), p.verifyCommand(),
		p.forgetCommand(), p.unforgetCommand(), p.pinCommand(), p.unpinCommand(), p.pruneCommand(),
		p.bitmapCommand(), p.configCommand(), p.thawCommand(), p.demoCommand(), p.versionCommand(), p.guardCommand(), p.manCommand(),
	)
	return root
}

// unknownCommand is where words end up that name no command.
func unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	if args[0] == "check" {
		return usagef("unknown command %q; `qbackup status --nagios` says how machines are, `qbackup verify` looks for damage in the repository", args[0])
	}
	suggestion := ""
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		suggestion = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("unknown command %q%s", args[0], suggestion)
}

// arguments wraps a check of positional arguments so that its failure is a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usagef("%v; see %s --help", err, c.CommandPath())
		}
		return nil
	}
}

// openStore opens the place that --repo names; with create, a missing folder is made.
func (p *program) openStore(ctx context.Context, create bool) (store.Store, error) {
	if p.repository == "" {
		return nil, usagef("no repository is named; use --repo, QBACKUP_REPOSITORY or a configuration")
	}
	place, err := location.Parse(p.repository)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	getenv, err := p.getenv()
	if err != nil {
		return nil, err
	}
	options := location.Options{
		Create: create, Stats: p.storeStats, Limit: p.limits(), Getenv: getenv, Retry: retry.Options{Budget: p.retryFor, OnRetry: p.noteRetry},
	}
	return location.Open(ctx, place, options)
}

// noteworthyDelay is how long a wait may be without a word about its reason.
const noteworthyDelay = time.Second

// noteRetry tells why the program waits, with -v also of short waits.
func (p *program) noteRetry(e retry.Event) {
	if p.verbose > 0 || e.Delay >= noteworthyDelay {
		p.note("%s %s failed, again in %v: %v", e.Op, e.Key, e.Delay.Round(time.Millisecond), e.Err)
	}
}

// openRepository opens the repository that --repo names, with the local cache of pack indexes when it can be had.
func (p *program) openRepository(ctx context.Context) (*repo.Repository, error) {
	return p.openRepositoryWith(ctx, p.openCache)
}

// openRepositoryWith opens the repository, and then its cache.
func (p *program) openRepositoryWith(ctx context.Context, openCache func() *repo.IndexCache) (*repo.Repository, error) {
	s, err := p.openStore(ctx, false)
	if errors.Is(err, store.ErrNoStore) {
		return nil, fmt.Errorf("%w: %s is not there; mount it, or make it with `qbackup init`", repo.ErrNoRepository, p.repository)
	}
	if err != nil {
		return nil, err
	}
	repository, err := repo.Open(ctx, s, repo.Options{Cache: openCache()})
	if errors.Is(err, store.ErrNoStore) {
		return nil, fmt.Errorf("%w: %s: %w", repo.ErrNoRepository, p.repository, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the repository at %s: %w", p.repository, err)
	}
	p.keeping.Lock()
	p.opened = repository.ID()
	p.keeping.Unlock()
	return repository, nil
}

// openCache opens the local cache of pack indexes. Without it the repository is asked more often, and nothing else changes.
func (p *program) openCache() *repo.IndexCache {
	dir, err := state.CacheDir(p.stateDir, state.HostEnvironment())
	if err == nil {
		var cache *repo.IndexCache
		if cache, err = repo.OpenIndexCache(dir, indexCacheBytes); err == nil {
			return cache
		}
	}
	p.note("no cache of pack indexes, the repository is asked instead: %v", err)
	return nil
}

// noCache is for commands that write nothing anywhere.
func noCache() *repo.IndexCache { return nil }

// openState opens what this host remembers.
func (p *program) openState(readOnly bool) (*state.State, error) {
	dir, err := state.Dir(p.stateDir, state.HostEnvironment())
	if err != nil {
		return nil, err
	}
	return state.Open(dir, state.Options{Report: func(err error) { p.note("%v", err) }, ReadOnly: readOnly})
}
