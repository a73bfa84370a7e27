package agent

import (
	"context"
	"fmt"

	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/source"
)

// seal stores what is left of the maps and the manifest, sees everything listed
// back, and writes the record that would make a point of it.
func (b *backup) seal(ctx context.Context, r *run, cut source.Cut, p *plan, maps []*mapping) (*format.Record, error) {
	deps, err := dependencies(maps, r.id)
	if err != nil {
		return nil, fmt.Errorf("seal run %s: %w", r.id, err)
	}
	manifest, err := r.Seal(ctx, deps)
	if err != nil {
		return nil, fmt.Errorf("seal run %s: %w", r.id, err)
	}
	record := &format.Record{
		Identity: r.Identity(), Manifest: manifest, BlockBytes: b.job.Repository.BlockBytes(),
		Time: r.cutAt, Started: r.at, Consistency: format.ConsistencyOffline, Host: b.o.Host, Tool: b.o.Tool, QEMU: p.qemu,
		Extras: p.extras.record(),
	}
	if c, ok := cut.(source.Consistent); ok {
		record.Consistency = c.Consistency()
		b.summary.FreezeSeconds = c.FreezeSeconds()
	}
	b.summary.Consistency = record.Consistency
	for _, d := range p.disks {
		record.Disks = append(record.Disks, d.record())
	}
	return record, nil
}
