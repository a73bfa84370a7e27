package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
	"github.com/qbackup/qbackup/internal/state"
	"github.com/qbackup/qbackup/upload"
)

// begin announces the run: in this host's journal, then in the repository, with
// every point it builds on, so that those stay while it lives.
func (b *backup) begin(ctx context.Context, p *plan) (*run, error) {
	if b.isNew {
		m := b.machine
		for _, d := range p.usable() {
			m.Disks = append(m.Disks, format.MachineDisk{Name: d.evidence.Name, Path: d.evidence.Path, Format: d.evidence.Facts.Format, SizeBytes: d.evidence.SizeBytes})
		}
		stored, err := b.job.Repository.CreateMachine(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("create machine %s: %w", b.job.Machine, err)
		}
		if stored.ID != m.ID {
			return nil, fmt.Errorf("%w: another run is making its first point", ErrRunning)
		}
		b.isNew = false
	}
	now := b.o.Clock()
	id, err := ident.NewRunID(now, b.o.Random)
	if err != nil {
		return nil, err
	}
	nonce, err := format.NewNonce(b.o.Random)
	if err != nil {
		return nil, err
	}
	entry := state.Run{Run: id, Host: b.o.Host, BootID: b.o.BootID, Nonce: nonce.String(), Time: now.UTC()}
	for _, d := range p.usable() {
		entry.Disks = append(entry.Disks, state.RunDisk{Name: d.evidence.Name, Path: d.evidence.Path, Mode: d.Mode, Base: d.Base})
	}
	if err := b.local.Begin(b.machine.ID, entry); err != nil {
		return nil, err
	}
	b.journal.MachineID, b.journal.Last = b.machine.ID, &entry
	b.lessons.building = nil
	for _, h := range p.holds() {
		b.lessons.building = append(b.lessons.building, h.Run)
	}
	r, err := b.job.Repository.Begin(ctx, repo.IntentSpec{
		Machine: b.job.Machine, MachineID: b.machine.ID, Run: id, Nonce: nonce, Bases: p.holds(),
		Host: b.o.Host, BootID: b.o.BootID, Tool: b.o.Tool, Time: now,
	})
	if err != nil {
		return nil, fmt.Errorf("begin run %s: %w", id, err)
	}
	return &run{Run: r, id: id, at: now}, nil
}

// freeze sets the point in time, and proves that these are the machine's disks
// when nothing else does.
func (b *backup) freeze(ctx context.Context, r *run, p *plan) (source.Cut, error) {
	cut, err := b.source.Freeze(ctx, r.id, p.sourceBases(b.machine.ID.Family()))
	if err != nil {
		return nil, fmt.Errorf("freeze machine %s: %w", b.job.Machine, err)
	}
	r.cutAt = b.o.Clock()
	if p.prove {
		if err := b.prove(ctx, cut, p); err != nil {
			return nil, errors.Join(err, cut.Abort(context.WithoutCancel(ctx)))
		}
	}
	return cut, nil
}

// upload stores what changed and the maps of all disks, and gives the record
// that would make a point of them. Everything it names was listed back.
func (b *backup) upload(ctx context.Context, r *run, cut source.Cut, p *plan) (*format.Record, error) {
	var jobs []upload.Job
	var maps []*mapping
	var progress []DiskProgress
	var err error
	for _, disk := range cut.Disks() {
		d := p.disk(disk.Name())
		if d == nil {
			return nil, fmt.Errorf("the source gives disk %q, which was not asked for", disk.Name())
		}
		m, err := b.newMapping(r, d)
		if err != nil {
			return nil, fmt.Errorf("start the map of disk %s: %w", disk.Name(), err)
		}
		d.stats = &upload.DiskStats{}
		if n := disk.DirtyBytes(); n >= 0 && d.Mode == format.ModeIncremental {
			d.dirtyBytes = n
		}
		d.stats.Total.Store(d.dirtyBytes)
		job := upload.Job{
			Name: disk.Name(), Ordinal: uint16(d.ordinal), Disk: disk, Map: m.setter,
			Rescan: d.Mode != format.ModeIncremental, Stats: d.stats,
		}
		if d.base != nil {
			job.Base = padded{d.base.Map()}
			if job.Hashes, err = b.knownHashes(ctx, d); err != nil {
				return nil, err
			}
		}
		if w, ok := disk.(source.Watched); ok {
			d.evidence.Facts = w.Facts()
		}
		jobs, maps = append(jobs, job), append(maps, m)
		progress = append(progress, DiskProgress{Name: disk.Name(), Mode: d.Mode, Stats: d.stats})
	}
	b.o.Stats.watch(progress)
	if x := p.extras; x != nil {
		m, err := b.newMapping(r, x.plan())
		if err != nil {
			return nil, fmt.Errorf("start the map of the extra files: %w", err)
		}
		x.mapping = m
		jobs, maps = append(jobs, x.job()), append(maps, m)
	}

	err = b.renewing(ctx, r, func(ctx context.Context) error {
		if err := upload.Run(ctx, jobs, r, b.uploadOptions(r, p)); err != nil {
			return fmt.Errorf("upload: %w", err)
		}
		for _, m := range maps {
			if err := m.finish(ctx); err != nil {
				return fmt.Errorf("write the map of disk %s: %w", m.disk.evidence.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.seal(ctx, r, cut, p, maps)
}

func (b *backup) uploadOptions(r *run, p *plan) upload.Options {
	workers := b.o.Workers
	if workers == 0 && p.qemu != "" {
		workers = max(liveWorkers, runtime.GOMAXPROCS(0))
	}
	return upload.Options{
		Codec: b.job.Repository.Codec(), Hasher: b.job.Repository.Hasher(),
		Pack:   format.PackHeader{Repository: b.job.Repository.ID(), MachineID: b.machine.ID, Run: r.id},
		Random: b.o.Random, Workers: workers, MemoryBytes: b.o.MemoryBytes, Stats: b.o.Stats.Pipeline(),
	}
}

// renewing runs work and says meanwhile, every hour, that the run lives. A
// repository that cannot be told is one that nothing can be stored in.
func (b *backup) renewing(ctx context.Context, r *run, work func(context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	group.Go(func() error {
		defer close(done)
		return work(ctx)
	})
	group.Go(func() error {
		tick := time.NewTicker(b.o.RenewEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				return nil // work says why
			case <-tick.C:
				if err := r.Renew(ctx); err != nil {
					return fmt.Errorf("renew the intent: %w", err)
				}
			}
		}
	})
	return group.Wait()
}

// mapping is the new map of one disk while it is made.
type mapping struct {
	disk    *diskPlan
	builder *blockmap.Builder
	overlay *overlay // not nil: the old map is written anew
	tracker *tracker // not nil: the map is made from nothing
	setter  setter
}

// newMapping starts from the base's map in an increment, from nothing otherwise.
// A map that was changed in many runs is written anew.
func (b *backup) newMapping(r *run, d *diskPlan) (*mapping, error) {
	blocks := format.Blocks(d.evidence.SizeBytes, b.job.Repository.BlockBytes())
	m := &mapping{disk: d}
	var root *format.MapRoot
	var baseBlocks int64
	if d.Mode == format.ModeIncremental {
		old := d.base.Map()
		base := old.Root()
		if base.RunsSinceRewrite >= rewriteAfter || len(d.point.Dependencies()) > dependenciesMax {
			m.overlay = &overlay{old: old, blocks: old.Blocks()}
		} else {
			root, baseBlocks = &base, old.Blocks()
		}
	}
	var err error
	if m.builder, err = blockmap.NewBuilder(root, baseBlocks, blocks, b.job.Repository.Nodes(b.job.Machine), r.Sink()); err != nil {
		return nil, err
	}
	m.setter = m.builder
	if root == nil {
		m.tracker = &tracker{setter: m.builder, runs: map[ident.RunID]bool{}}
		m.setter = m.tracker
	}
	if m.overlay != nil {
		m.overlay.out = m.tracker
		m.setter = m.overlay
	}
	return m, nil
}

func (m *mapping) finish(ctx context.Context) error {
	if m.overlay != nil {
		if err := m.overlay.finish(ctx); err != nil {
			return err
		}
	}
	root, err := m.builder.Finish(ctx)
	m.disk.root = root
	return err
}
