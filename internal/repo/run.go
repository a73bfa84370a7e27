package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/blockmap"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// IntentSpec says what a run is about to do.
type IntentSpec struct {
	Machine   ident.MachineName
	MachineID ident.MachineID
	Run       ident.RunID   // zero: a new one
	Nonce     format.Nonce  // zero: a new one
	Kind      string        // "": format.IntentBackup
	Bases     []format.Base // every point that the run builds on or refers to
	Host      string
	BootID    string
	Tool      string
	Time      time.Time // zero: now
}

// Run is one attempt to make a point. PutPack, Renew and the Sink's PutNode may be
// called in parallel; Seal comes after them, Publish after Seal.
type Run struct {
	r        *Repository
	identity format.Identity
	intent   format.Intent

	mu       sync.Mutex
	renewals uint32
	packs    map[uint32]format.PackEntry
	maps     []format.MapEntry
	open     *format.MapWriter // nil: none was begun
	manifest *format.Manifest  // nil: not sealed
	sealed   format.Reference
}

// Begin announces a run with every base it needs, before it stores anything else,
// and then makes sure that none of them was forgotten meanwhile: from here on,
// whoever deletes garbage keeps them. With a *BaseForgottenError the run is over.
func (r *Repository) Begin(ctx context.Context, spec IntentSpec) (*Run, error) {
	if err := r.checkWrite(); err != nil {
		return nil, err
	}
	run := &Run{r: r, packs: map[uint32]format.PackEntry{}}
	if err := run.fill(spec); err != nil {
		return nil, err
	}
	if err := run.putIntent(ctx, 0); err != nil {
		return nil, err
	}
	seen := map[ident.RunID]bool{}
	for _, base := range spec.Bases {
		if seen[base.Run] {
			continue
		}
		seen[base.Run] = true
		gone, err := r.forgotten(ctx, spec.Machine, base.Run)
		if err != nil {
			return nil, fmt.Errorf("check base %s: %w", base.Run, err)
		}
		if gone {
			// The run has sent no record, so taking its slot harms nobody. That it
			// may fail costs garbage only.
			_ = run.Abort(ctx, "its base was forgotten")
			return nil, &BaseForgottenError{Run: base.Run, Disks: disksOn(spec.Bases, base.Run)}
		}
	}
	return run, nil
}

// Intent reads what a run said of itself; number 0 is its intent, others are renewals.
func (r *Repository) Intent(ctx context.Context, machine ident.MachineName, run ident.RunID, number uint32) (*format.Intent, error) {
	key := format.IntentKey(machine, run, number)
	i, err := readDocument(ctx, r.store, key, func(b []byte) (*format.Intent, error) {
		return format.ParseIntent(b, r.identity(machine, ident.MachineID{}, run), number)
	})
	if err != nil {
		return nil, judge(key, err)
	}
	return i, nil
}

func disksOn(bases []format.Base, run ident.RunID) (disks []string) {
	for _, b := range bases {
		if b.Run == run {
			disks = append(disks, b.Disk)
		}
	}
	return disks
}

func (run *Run) fill(spec IntentSpec) (err error) {
	if spec.Time.IsZero() {
		spec.Time = run.r.clock()
	}
	if spec.Run.IsZero() {
		if spec.Run, err = ident.NewRunID(spec.Time, run.r.random); err != nil {
			return fmt.Errorf("make a run id: %w", err)
		}
	}
	if spec.Nonce.IsZero() {
		if spec.Nonce, err = format.NewNonce(run.r.random); err != nil {
			return err
		}
	}
	if spec.Kind == "" {
		spec.Kind = format.IntentBackup
	}
	run.identity = run.r.identity(spec.Machine, spec.MachineID, spec.Run)
	run.intent = format.Intent{
		Identity: run.identity, Kind: spec.Kind, Bases: slices.Clone(spec.Bases), Host: spec.Host, BootID: spec.BootID,
		Nonce: spec.Nonce, Time: spec.Time, Tool: spec.Tool,
	}
	return nil
}

// ID is the run's id.
func (run *Run) ID() ident.RunID { return run.identity.Run }

// Identity is what every object of the run repeats.
func (run *Run) Identity() format.Identity { return run.identity }

func (run *Run) putIntent(ctx context.Context, number uint32) error {
	intent := run.intent
	intent.Number = number
	if number > 0 {
		intent.Time = run.r.clock()
	}
	body, err := format.AppendIntent(nil, &intent)
	if err != nil {
		return fmt.Errorf("make the intent of run %s: %w", run.ID(), err)
	}
	key := format.IntentKey(run.identity.Machine, run.ID(), number)
	if err := send(ctx, run.r.store, key, body, store.Metadata); err != nil {
		return fmt.Errorf("announce run %s: %w", run.ID(), err)
	}
	return nil
}

// Renew says that the run still lives. A run older than all its renewals together
// (more than a year, hourly) says nothing more.
func (run *Run) Renew(ctx context.Context) error {
	run.mu.Lock()
	run.renewals++
	number := run.renewals
	run.mu.Unlock()
	if number > format.MaxNumber {
		return nil
	}
	return run.putIntent(ctx, number)
}

// PutPack stores a pack. nil says that the store has confirmed all of it. The pack
// is the caller's again when PutPack returns.
func (run *Run) PutPack(ctx context.Context, p format.SealedPack) error {
	h, err := format.ParsePackHeader(p.Bytes)
	if err == nil {
		err = h.Check(run.identity, p.Seq)
	}
	if err != nil {
		return fmt.Errorf("check pack %d: %w", p.Seq, err)
	}
	run.mu.Lock()
	_, twice := run.packs[p.Seq]
	if !twice && run.manifest == nil {
		run.packs[p.Seq] = format.PackEntry{} // taken; the entry comes when it is stored
	}
	late := run.manifest != nil
	run.mu.Unlock()
	if twice || late {
		return fmt.Errorf("pack %d of run %s came twice or after the manifest: %w", p.Seq, run.ID(), format.ErrInvalid)
	}
	key := format.PackKey(run.identity.Machine, run.ID(), p.Seq)
	if err := send(ctx, run.r.store, key, p.Bytes, store.Data); err != nil {
		return fmt.Errorf("store pack: %w", err)
	}
	run.r.local.write(run.r.localName(run.identity.Machine, run.ID(), packFile(p.Seq)), p.Tail)
	run.mu.Lock()
	defer run.mu.Unlock()
	run.packs[p.Seq] = p.Entry
	return nil
}

// Sink takes the map nodes of the run. Nodes are stored at the latest by Seal.
func (run *Run) Sink() blockmap.Sink { return sink{run} }

type sink struct{ run *Run }

// PutNode implements blockmap.Sink.
func (s sink) PutNode(ctx context.Context, node []byte) (format.NodeRef, error) {
	run := s.run
	run.mu.Lock()
	defer run.mu.Unlock()
	if run.manifest != nil {
		return format.NodeRef{}, fmt.Errorf("a map node of run %s came after the manifest: %w", run.ID(), format.ErrInvalid)
	}
	for {
		if run.open == nil {
			run.open = format.NewMapWriter(format.MapHeader{
				Repository: run.identity.Repository, MachineID: run.identity.MachineID, Run: run.ID(), Seq: uint32(len(run.maps)),
			}, mapObjectBytes)
		}
		ref, err := run.open.AppendNode(node)
		if !errors.Is(err, format.ErrPackFull) {
			return ref, err
		}
		if err := run.flushMap(ctx); err != nil {
			return format.NodeRef{}, err
		}
	}
}

// flushMap stores the open map object. The caller holds mu.
func (run *Run) flushMap(ctx context.Context) error {
	if run.open == nil {
		return nil
	}
	m, err := run.open.Seal()
	if err != nil {
		return fmt.Errorf("seal map object: %w", err)
	}
	key := format.MapKey(run.identity.Machine, run.ID(), m.Seq)
	if err := send(ctx, run.r.store, key, m.Bytes, store.Metadata); err != nil {
		return fmt.Errorf("store map object: %w", err)
	}
	run.maps = append(run.maps, m.Entry)
	run.open = nil
	return nil
}
