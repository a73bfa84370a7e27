package verify

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/store"
)

// Run verifies a repository. Damage is in the report and no error: an error says that the repository could not be asked
// (store unreachable, cancelled, written by a later version), or ErrNoMachine.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	v := newVerification(r, o)
	all, err := v.list(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.descriptors(ctx, all.descriptors); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(all.machines)) {
		if err := v.machine(ctx, name, all.machines[name]); err != nil {
			return nil, fmt.Errorf("verify machine %s: %w", name, err)
		}
		delete(all.machines, name)
	}
	return &Report{
		Objects: v.stats.Objects.Load(), Bytes: v.stats.Bytes.Load(), Points: v.points,
		Damage: v.found.damage(), RangesOmitted: v.found.omitted, Remarks: v.remarks.list(),
	}, nil
}

// verification is one Run.
type verification struct {
	r       *repo.Repository
	store   store.Store
	o       Options
	stats   *Stats
	found   *table
	remarks *remarks
	points  int
}

func newVerification(r *repo.Repository, o Options) *verification {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	return &verification{r: r, store: r.Store(), o: o, stats: o.Stats, found: newTable(), remarks: &remarks{}}
}

// readRange reads exactly n bytes of an object into b.
func (v *verification) readRange(ctx context.Context, key string, off int64, b []byte) error {
	body, err := v.store.Get(ctx, key, off, int64(len(b)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, b); err != nil {
		return store.Wrap("get", key, err)
	}
	return nil
}

// looked counts an object that was looked at, and what was read of it.
func (v *verification) looked(bytes int64) {
	v.stats.Objects.Add(1)
	v.stats.Bytes.Add(bytes)
}

// expect counts bytes that will be read.
func (v *verification) expect(bytes int64) { v.stats.Total.Add(bytes) }

// twice makes a check, and when it finds damage makes it again: bytes can be spoiled on their way, too. It gives the
// problem, "" when there is none; an error says nothing about the object.
func (v *verification) twice(key string, check func() error) (problem string, err error) {
	err = check()
	if _, damaged := judge(err); !damaged {
		return "", err
	}
	first := err
	err = check()
	problem, damaged := judge(err)
	switch {
	case damaged:
		return problem, nil
	case err == nil:
		v.remarks.add("was wrong when it was read first, and right the second time: look for failing memory or network hardware", key+" ("+first.Error()+")")
	}
	return "", err
}

// remarks collects what is worth knowing, by kind, so that a kind with many examples stays short. It is safe for
// parallel use.
type remarks struct {
	mu    sync.Mutex
	kinds []string // in order of appearance
	about map[string][]string
	more  map[string]int
}

// add notes that something is said about a subject.
func (r *remarks) add(said, subject string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.about == nil {
		r.about, r.more = map[string][]string{}, map[string]int{}
	}
	if _, known := r.about[said]; !known {
		r.kinds = append(r.kinds, said)
	}
	if len(r.about[said]) >= maxRemarks {
		r.more[said]++
		return
	}
	r.about[said] = append(r.about[said], subject)
}

func (r *remarks) list() []string {
	list := []string{}
	for _, said := range r.kinds {
		for _, subject := range r.about[said] {
			list = append(list, subject+" "+said)
		}
		if n := r.more[said]; n > 0 {
			list = append(list, fmt.Sprintf("%d more: each %s", n, said))
		}
	}
	return list
}
