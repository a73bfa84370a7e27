package repo

import (
	"context"
	"errors"
	"fmt"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// Machine reads what a machine is; false when the repository does not know it.
func (r *Repository) Machine(ctx context.Context, name ident.MachineName) (format.Machine, bool, error) {
	key := format.MachineKey(name)
	m, err := readDocument(ctx, r.store, key, func(b []byte) (*format.Machine, error) { return format.ParseMachine(b, r.ID(), name) })
	if errors.Is(err, store.ErrNotFound) {
		return format.Machine{}, false, nil
	}
	if err != nil {
		return format.Machine{}, false, judge(key, err)
	}
	return *m, true, nil
}

// CreateMachine stores what a new machine is and gives what is stored: compare the
// ids, somebody else may have been first. Repository is filled in.
func (r *Repository) CreateMachine(ctx context.Context, m format.Machine) (format.Machine, error) {
	if err := r.checkWrite(); err != nil {
		return format.Machine{}, err
	}
	m.Repository = r.ID()
	body, err := format.AppendMachine(nil, &m)
	if err != nil {
		return format.Machine{}, fmt.Errorf("make the document of machine %s: %w", m.Name, err)
	}
	key := format.MachineKey(m.Name)
	found, _, err := create(ctx, r.store, key, body)
	if err != nil {
		return format.Machine{}, fmt.Errorf("create machine %s: %w", m.Name, err)
	}
	stored, err := format.ParseMachine(found, r.ID(), m.Name)
	if err != nil {
		return format.Machine{}, judge(key, err)
	}
	return *stored, nil
}

// Machines lists the names of all machines, ascending. Keys of another form are
// not ours and left out.
func (r *Repository) Machines(ctx context.Context) ([]ident.MachineName, error) {
	var names []ident.MachineName
	for info, err := range r.store.List(ctx, format.MachinesPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list machines: %w", err)
		}
		if key, err := format.ParseKey(info.Key); err == nil {
			names = append(names, key.Machine)
		}
	}
	return names, nil
}
