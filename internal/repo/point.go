package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// PointInfo is one point of a listing.
type PointInfo struct {
	Run    ident.RunID
	Stored time.Time      // when the slot was taken, by the clock of the store
	Bytes  int64          // length of the record
	Record *format.Record // nil with Err
	Err    error          // why the record cannot be read; a *Damage
}

// Time is the point in time; where the record cannot be read, when the run began.
func (p PointInfo) Time() time.Time {
	if p.Record == nil {
		return p.Run.Time()
	}
	return p.Record.Time
}

// Points lists the points of a machine by ascending time. A point with a damaged
// record is listed with its error.
func (r *Repository) Points(ctx context.Context, machine ident.MachineName) ([]PointInfo, error) {
	slots, err := r.standingSlots(ctx, machine)
	if err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(listReads)
	for i := range slots {
		group.Go(func() error { return r.readPoint(groupCtx, machine, &slots[i]) })
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("read points of %s: %w", machine, err)
	}
	points := slices.DeleteFunc(slots, func(p PointInfo) bool { return p.Err == nil && p.Record == nil })
	slices.SortStableFunc(points, func(a, b PointInfo) int {
		return cmp.Or(a.Time().Compare(b.Time()), a.Run.Compare(b.Run))
	})
	return points, nil
}

// ForgottenPoint is a point that was forgotten.
type ForgottenPoint struct {
	PointInfo
	Since time.Time // by the clock of the store
}

// ForgottenPoints lists the points of a machine that are forgotten, by ascending time. The data of some may be gone.
func (r *Repository) ForgottenPoints(ctx context.Context, machine ident.MachineName) ([]ForgottenPoint, error) {
	tombs, err := r.Tombstones(ctx, machine)
	if err != nil {
		return nil, err
	}
	var points []ForgottenPoint
	for run, tomb := range tombs {
		if !tomb.Set {
			continue
		}
		p := ForgottenPoint{PointInfo{Run: run}, tomb.Since}
		if err := r.readPoint(ctx, machine, &p.PointInfo); err != nil {
			return nil, err
		}
		if p.Record != nil || p.Err != nil {
			points = append(points, p)
		}
	}
	slices.SortFunc(points, func(a, b ForgottenPoint) int {
		return cmp.Or(a.Time().Compare(b.Time()), a.Run.Compare(b.Run))
	})
	return points, nil
}

// readPoint fills in what a slot holds. An abort leaves neither a record nor an error.
func (r *Repository) readPoint(ctx context.Context, machine ident.MachineName, p *PointInfo) error {
	s, err := r.ReadSlot(ctx, machine, p.Run)
	if err == nil && s.State == SlotAbsent {
		err = &Damage{Key: format.PointKey(machine, p.Run), Offset: -1, Err: fmt.Errorf("it was listed, but cannot be read: %w", store.ErrNotFound)}
	}
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	p.Bytes, p.Record, p.Err = s.Bytes, s.Record, err
	return nil
}

// Slots lists the runs of a machine that have a commit slot and are not forgotten,
// ascending, by their keys alone: some of them are aborted.
func (r *Repository) Slots(ctx context.Context, machine ident.MachineName) ([]ident.RunID, error) {
	slots, err := r.standingSlots(ctx, machine)
	runs := make([]ident.RunID, len(slots))
	for i, s := range slots {
		runs[i] = s.Run
	}
	return runs, err
}

func (r *Repository) standingSlots(ctx context.Context, machine ident.MachineName) ([]PointInfo, error) {
	var slots []PointInfo
	for info, err := range r.store.List(ctx, format.PointsPrefix(machine)) {
		if err != nil {
			return nil, fmt.Errorf("list points of %s: %w", machine, err)
		}
		if key, err := format.ParseKey(info.Key); err == nil && key.Kind == format.KeyPoint {
			slots = append(slots, PointInfo{Run: key.Run, Stored: info.Modified})
		}
	}
	// Slots first, then tombstones: what is hidden by now is left out.
	hidden, err := r.Tombstones(ctx, machine)
	if err != nil {
		return nil, fmt.Errorf("list forgotten points of %s: %w", machine, err)
	}
	return slices.DeleteFunc(slots, func(p PointInfo) bool { return hidden[p.Run].Set }), nil
}

// Point is an open point.
type Point struct {
	r        *Repository
	machine  ident.MachineName
	record   *format.Record
	manifest *format.Manifest
}

// OpenPoint reads a point's record and manifest. Errors are those of Record.
func (r *Repository) OpenPoint(ctx context.Context, machine ident.MachineName, run ident.RunID) (*Point, error) {
	record, err := r.Record(ctx, machine, run)
	if err != nil {
		return nil, err
	}
	return r.OpenRecord(ctx, record)
}

// OpenRecord is OpenPoint for a record that was read already.
func (r *Repository) OpenRecord(ctx context.Context, record *format.Record) (*Point, error) {
	p := &Point{r: r, machine: record.Machine, record: record}
	var err error
	if p.manifest, err = r.manifest(ctx, p.machine, record.Run, record.Manifest.Hash); err != nil {
		return nil, fmt.Errorf("open point %s: %w", record.Run, err)
	}
	return p, nil
}

// Record is the point's record; it must not be changed.
func (p *Point) Record() *format.Record { return p.record }

// Manifest is the manifest of the point's own run; it must not be changed.
func (p *Point) Manifest() *format.Manifest { return p.manifest }

// Dependencies gives every run that the point's maps may refer to, its own
// included, ascending.
func (p *Point) Dependencies() []format.Dependency {
	own := format.Dependency{Run: p.record.Run, Manifest: p.record.Manifest.Hash}
	all := append(slices.Clone(p.manifest.Runs), own)
	slices.SortFunc(all, func(a, b format.Dependency) int { return a.Run.Compare(b.Run) })
	return all
}

// RunManifest gives the manifest of the point's own run or of one it depends on.
func (p *Point) RunManifest(ctx context.Context, run ident.RunID) (*format.Manifest, error) {
	if run == p.record.Run {
		return p.manifest, nil
	}
	d, ok := p.manifest.Dependency(run)
	if !ok {
		return nil, &Damage{Key: format.ManifestKey(p.machine, p.record.Run), Offset: -1, Err: fmt.Errorf("it does not name run %s, to which a map refers: %w", run, format.ErrCorrupt)}
	}
	return p.r.manifest(ctx, p.machine, run, d.Manifest)
}

// Extra opens an extra file of the point by its name. ErrNoExtra: it has none
// of that name.
func (p *Point) Extra(name string) (*io.SectionReader, error) {
	e := p.record.Extras
	if e == nil {
		return nil, fmt.Errorf("%q of point %s: %w", name, p.record.Run, ErrNoExtra)
	}
	i := slices.IndexFunc(e.Files, func(f format.ExtraFile) bool { return f.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("%q of point %s: %w", name, p.record.Run, ErrNoExtra)
	}
	blockBytes := p.r.BlockBytes()
	all := p.record.Mapped()
	space := all[len(all)-1]
	d := &Disk{point: p, record: space, blocks: blockmap.NewReader(e.Map, format.Blocks(space.SizeBytes, blockBytes), p.r.Nodes(p.machine))}
	return io.NewSectionReader(d, e.Offset(i, blockBytes), e.Files[i].Bytes), nil
}

// Disk opens a disk of the point by its name. Nothing is read yet. ErrNoDisk: the
// point does not have it, or could not capture it.
func (p *Point) Disk(name string) (*Disk, error) {
	d := p.record.Disk(name)
	if d == nil {
		return nil, fmt.Errorf("disk %q of point %s: %w", name, p.record.Run, ErrNoDisk)
	}
	if d.Mode == format.ModeMissing {
		return nil, fmt.Errorf("disk %q of point %s: %w: it was not captured: %s", name, p.record.Run, ErrNoDisk, d.Error)
	}
	blocks := format.Blocks(d.SizeBytes, p.r.BlockBytes())
	return &Disk{point: p, record: d, blocks: blockmap.NewReader(d.Map, blocks, p.r.Nodes(p.machine))}, nil
}
