package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// descriptors reads every generation of the descriptor, also those that no longer count.
func (v *verification) descriptors(ctx context.Context, list []document) error {
	now := v.r.Descriptor()
	return inParallel(ctx, v.o.Workers, slices.Values(list), func(ctx context.Context, _ *scratch, d document) error {
		_, err := v.document(ctx, d, func(b []byte) error {
			was, err := format.ParseDescriptor(b, d.key.Generation)
			if err == nil && (was.Repository != now.Repository || was.BlockBytes != now.BlockBytes || was.HashKey != now.HashKey) {
				err = fmt.Errorf("id, block size or hash key are not those of generation %d: %w", now.Generation, format.ErrMisplaced)
			}
			return err
		})
		return err
	})
}

// document reads and parses one document. When it is damaged, the finding is noted and given. A document of a later version
// is a remark.
func (v *verification) document(ctx context.Context, d document, parse func([]byte) error) (*finding, error) {
	key := d.key.String()
	v.expect(d.bytes)
	problem, err := v.twice(key, func() error {
		b, err := store.ReadAll(ctx, v.store, key, format.MaxDocumentBytes)
		if err == nil {
			err = parse(b)
		}
		if errors.Is(err, format.ErrUnsupported) {
			v.remarks.add("was written by a later qbackup and cannot be checked by this one", key)
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	v.looked(d.bytes)
	if problem == "" {
		return nil, nil
	}
	f := wholeObject(key, "%s", problem)
	v.found.add(f)
	return &f, nil
}

// documents reads all documents of a machine: its own first, because the others must have the id that it gives.
func (m *machine) documents(ctx context.Context) error {
	own := slices.IndexFunc(m.stock.documents, func(d document) bool { return d.key.Kind == format.KeyMachine })
	if own >= 0 {
		_, err := m.document(ctx, m.stock.documents[own], func(b []byte) error {
			doc, err := format.ParseMachine(b, m.r.ID(), m.name)
			if err == nil {
				m.id = doc.ID
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	m.noteTombstones()
	err := inParallel(ctx, m.o.Workers, slices.Values(m.stock.documents), func(ctx context.Context, _ *scratch, d document) error {
		if d.key.Kind == format.KeyMachine {
			return nil
		}
		return m.runDocument(ctx, d)
	})
	if err != nil {
		return err
	}
	switch {
	case own >= 0:
	case len(m.points) > 0:
		m.found.add(wholeObject(format.MachineKey(m.name), "it is missing, and the machine has points"))
	default:
		m.remarks.add("has objects and neither a document that says what it is nor points", "machine "+string(m.name))
	}
	return nil
}

// noteTombstones finds out which points are forgotten. A listing ascends by key, and so by number.
func (m *machine) noteTombstones() {
	marks := map[ident.RunID][]format.Stored{}
	for _, d := range m.stock.documents {
		if d.key.Kind == format.KeyTombstone {
			marks[d.key.Run] = append(marks[d.key.Run], format.Stored{Number: d.key.Number, At: d.modified})
		}
	}
	for run, list := range marks {
		m.forgotten[run] = format.TombstoneStanding(list).Set
	}
}

// runDocument reads a document of a run.
func (m *machine) runDocument(ctx context.Context, d document) error {
	at := m.identity(d.key.Run)
	var record *format.Record
	var verdict *format.Verdict
	var raw []byte
	f, err := m.document(ctx, d, func(b []byte) (err error) {
		raw = b
		switch d.key.Kind {
		case format.KeyIntent:
			_, err = format.ParseIntent(b, at, d.key.Number)
		case format.KeyTombstone:
			_, err = format.ParseMark(b, format.KindTombstone, at, d.key.Number)
		case format.KeyPin:
			_, err = format.ParseMark(b, format.KindPin, at, d.key.Number)
		case format.KeyVerdict:
			verdict, err = format.ParseVerdict(b, at, d.key.Number)
		case format.KeyPoint:
			record, _, err = format.ParseSlot(b, at)
			if err == nil && record != nil && record.BlockBytes != m.r.BlockBytes() {
				err = fmt.Errorf("it has blocks of %d bytes, the repository of %d: %w", record.BlockBytes, m.r.BlockBytes(), format.ErrMisplaced)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case d.key.Kind == format.KeyVerdict:
		m.noteVerdict(d.key, verdict)
	case d.key.Kind != format.KeyPoint || m.forgotten[d.key.Run]:
	case f != nil:
		if !bytes.HasPrefix(raw, []byte("qbackup "+format.KindAbort+" ")) {
			m.found.addPoint(*f, pointID{m.name, d.key.Run}, d.key.Run.Time())
			m.lostPoints++
		}
	case record != nil:
		m.points = append(m.points, &point{record: record})
	default:
		m.aborted[d.key.Run] = true
	}
	return nil
}

// noteVerdict remembers what was recorded before.
func (m *machine) noteVerdict(key format.Key, v *format.Verdict) {
	m.nextVerdict[key.Run] = max(m.nextVerdict[key.Run], key.Number+1)
	if v == nil {
		return
	}
	for _, f := range v.Damage {
		m.condemned[f.Key] = true
	}
}

func (m *machine) identity(run ident.RunID) format.Identity {
	return format.Identity{Repository: m.r.ID(), Machine: m.name, MachineID: m.id, Run: run}
}
