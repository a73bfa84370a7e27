package verify

import (
	"context"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
)

// attribute finds the ranges of disks that the damage costs: the second walk, over the points that refer to a run with
// damaged objects.
func (m *machine) attribute(ctx context.Context) error {
	bad := m.badRuns()
	if len(bad) == 0 {
		return nil
	}
	w := m.newWalk(true)
	for _, p := range m.points {
		if p.bad != nil {
			m.loseAll(p)
			continue
		}
		concerned := false
		for run := range p.needs {
			concerned = concerned || bad[run]
		}
		if !concerned {
			continue
		}
		if err := w.point(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// loseAll notes a point that cannot be opened.
func (m *machine) loseAll(p *point) {
	m.found.addPoint(*p.bad, p.id(), p.time())
	for _, d := range p.record.Mapped() {
		if d.SizeBytes > 0 {
			m.found.addRange(*p.bad, p.id(), p.time(), d.Name, extent.Extent{Len: d.SizeBytes})
		}
	}
}

// badRuns gives the runs of the machine in whose data damage was found.
func (m *machine) badRuns() map[ident.RunID]bool {
	bad := map[ident.RunID]bool{}
	for _, f := range m.found.findings() {
		if key, err := format.ParseKey(f.key); err == nil && ofData(key.Kind) && key.Machine == m.name {
			bad[key.Run] = true
		}
	}
	return bad
}
