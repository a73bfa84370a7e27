package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// inventory is what the store lists, by machine.
type inventory struct {
	descriptors []document
	machines    map[ident.MachineName]*stock
}

// stock is what is listed of one machine.
type stock struct {
	documents []document
	runs      map[ident.RunID]*runStock
}

// document is a listed object that is a document.
type document struct {
	key      format.Key
	bytes    int64
	modified time.Time // by the clock of the store
}

// runStock is what is listed of a run's data; both lists ascend.
type runStock struct {
	manifestBytes int64 // -1: none
	packs, maps   []object
}

type object struct {
	seq   uint32
	bytes int64
}

// list lists everything, or with Options.Machines what belongs to them and to the repository as a whole. What was not
// listed although it was written before is looked for once more when it is missed.
func (v *verification) list(ctx context.Context) (*inventory, error) {
	all := &inventory{machines: map[ident.MachineName]*stock{}}
	prefixes := []string{""}
	if v.o.Machines != nil {
		prefixes = []string{format.RepositoryPrefix}
		for _, m := range v.o.Machines {
			prefixes = append(prefixes, format.MachineKey(m), format.RunsPrefix(m), format.MachineDataPrefix(m),
				format.PointsPrefix(m), format.ForgottenPrefix(m), format.PinsPrefix(m), format.VerdictsPrefix(m))
		}
	}
	for _, prefix := range prefixes {
		for info, err := range v.store.List(ctx, prefix) {
			if errors.Is(err, store.ErrNotFound) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("list the repository: %w", err)
			}
			if strings.HasPrefix(info.Key, format.ProbePrefix) {
				continue
			}
			key, err := format.ParseKey(info.Key)
			switch {
			case err != nil:
				v.remarks.add("is no object of qbackup's and was left alone", info.Key)
			case v.o.Machines == nil || key.Kind == format.KeyRepository || strings.HasSuffix(prefix, "/") || info.Key == prefix:
				all.add(key, info)
			}
		}
	}
	for _, m := range v.o.Machines {
		if all.machines[m] == nil {
			return nil, fmt.Errorf("machine %s: %w", m, ErrNoMachine)
		}
	}
	return all, nil
}

func (all *inventory) add(key format.Key, info store.Info) {
	bytes, modified := info.Size, info.Modified
	if key.Kind == format.KeyRepository {
		all.descriptors = append(all.descriptors, document{key, bytes, modified})
		return
	}
	s := all.machines[key.Machine]
	if s == nil {
		s = &stock{runs: map[ident.RunID]*runStock{}}
		all.machines[key.Machine] = s
	}
	switch key.Kind {
	case format.KeyManifest:
		s.run(key.Run).manifestBytes = bytes
	case format.KeyPack:
		r := s.run(key.Run)
		r.packs = append(r.packs, object{key.Seq, bytes})
	case format.KeyMap:
		r := s.run(key.Run)
		r.maps = append(r.maps, object{key.Seq, bytes})
	default:
		s.documents = append(s.documents, document{key, bytes, modified})
	}
}

func (s *stock) run(run ident.RunID) *runStock {
	r := s.runs[run]
	if r == nil {
		r = &runStock{manifestBytes: -1}
		s.runs[run] = r
	}
	return r
}

// total gives the number and the bytes of the listed objects.
func (r *runStock) total() (objects int, bytes int64) {
	for _, list := range [][]object{r.packs, r.maps} {
		objects += len(list)
		for _, o := range list {
			bytes += o.bytes
		}
	}
	if r.manifestBytes >= 0 {
		objects, bytes = objects+1, bytes+r.manifestBytes
	}
	return objects, bytes
}
