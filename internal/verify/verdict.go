package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// record stores, for each run of the machine that has damaged packs, map objects or a damaged manifest, a verdict that names
// them, unless an earlier one does. Damaged documents need none: whoever reads them notices. Nothing in the report depends on
// it: where it cannot be stored, that is a remark.
func (m *machine) record(ctx context.Context) error {
	objects := map[ident.RunID][]format.Finding{}
	named := map[string]bool{}
	for _, f := range m.found.findings() {
		key, err := format.ParseKey(f.key)
		if err != nil || !ofData(key.Kind) || key.Machine != m.name || m.condemned[f.key] || named[f.key] {
			continue
		}
		named[f.key] = true
		objects[key.Run] = append(objects[key.Run], format.Finding{Key: f.key, Offset: f.offset, Length: f.length, Error: shortened(f.problem)})
	}
	for _, run := range slices.SortedFunc(maps.Keys(objects), ident.RunID.Compare) {
		for part := range slices.Chunk(objects[run], verdictFindings) {
			if err := m.putVerdict(ctx, run, part); err != nil {
				if ctx.Err() != nil {
					return err
				}
				m.remarks.add("is not marked as damaged in the repository, the next backup may build on it: "+err.Error(), "run "+run.String()+" of machine "+string(m.name))
				break
			}
		}
	}
	return nil
}

// ofData tells whether a kind of objects lies under a run's data.
func ofData(kind format.KeyKind) bool {
	return kind == format.KeyPack || kind == format.KeyMap || kind == format.KeyManifest
}

func (m *machine) putVerdict(ctx context.Context, run ident.RunID, objects []format.Finding) error {
	level := levelMaps
	if m.o.Data {
		level = levelData
	}
	d := m.r.Descriptor()
	if err := d.CheckWrite(); err != nil {
		return err
	}
	at := m.identity(run)
	if s := m.runs[run]; at.MachineID.IsZero() && s != nil && s.manifest != nil {
		at.MachineID = s.manifest.MachineID
	}
	// Another verification may take the same number at the same time.
	var err error
	for range verdictAttempts {
		number := m.nextVerdict[run]
		m.nextVerdict[run]++
		var body []byte
		body, err = format.AppendVerdict(nil, &format.Verdict{
			Identity: at, Number: number, Level: level, Time: m.o.Clock(), Host: m.o.Host, Tool: m.o.Tool, Damage: objects,
		})
		if err != nil {
			return fmt.Errorf("make verdict: %w", err)
		}
		err = m.store.Put(ctx, format.VerdictKey(m.name, run, number), store.NewBody(body), store.PutOptions{})
		if !errors.Is(err, store.ErrExists) {
			break
		}
	}
	return err
}

// shortened keeps a problem within its share of a verdict, and UTF-8.
func shortened(problem string) string {
	if len(problem) <= maxProblemBytes {
		return problem
	}
	for i := maxProblemBytes; i > 0; i-- {
		if problem[i]&0xc0 != 0x80 {
			return problem[:i]
		}
	}
	return ""
}
