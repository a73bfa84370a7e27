package prune

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/repotest"
	"github.com/qbackup/qbackup/internal/store"
	"github.com/qbackup/qbackup/internal/testtool"
)

const web = ident.MachineName("web")

// sim lets writers, pruners and one who forgets points work on one repository. Each of their calls to the store waits for
// its turn, and turns are given by chance: any of them may stand still for days between two calls.
type sim struct {
	t      *testing.T
	world  *repotest.World
	rng    *rand.Rand
	mu     sync.Mutex
	calls  []call
	asleep map[int]int // actor to the turn at which it goes on
	actors int         // the highest number of one
	turn   int
	end    bool
	failed error

	points, forgotten, back, deleted, aborted int
}

type call struct {
	actor int
	what  string
	turn  chan struct{}
}

// gate is the store as one actor has it.
type gate struct {
	store.Store
	s     *sim
	actor int
}

func (g gate) wait(what string) {
	turn := make(chan struct{})
	g.s.mu.Lock()
	g.s.calls = append(g.s.calls, call{g.actor, what, turn})
	g.s.mu.Unlock()
	<-turn
}

// Put may arrive once more, much later: a request that a proxy held back.
func (g gate) Put(ctx context.Context, key string, b store.Body, o store.PutOptions) error {
	g.wait("put " + key)
	if g.s.chance(4) {
		late := store.NewBody(bytes.Clone(b.Bytes()))
		again := gate{g.Store, g.s, g.s.newActor()}
		go func() {
			again.wait("late put " + key)
			_ = g.Store.Put(context.Background(), key, late, o)
		}()
	}
	return g.Store.Put(ctx, key, b, o)
}

func (g gate) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		g.wait("list " + prefix)
		g.Store.List(ctx, prefix)(yield)
	}
}

func (g gate) Stat(ctx context.Context, key string) (store.Info, error) {
	g.wait("stat " + key)
	return g.Store.Stat(ctx, key)
}

// Delete removes one object at a turn.
func (g gate) Delete(ctx context.Context, keys []string) error {
	for _, key := range keys {
		g.wait("delete " + key)
		if err := g.Store.Delete(ctx, []string{key}); err != nil {
			return err
		}
	}
	return nil
}

// chance is true once in n times. It is asked at a turn only.
func (s *sim) chance(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(n) == 0
}

// newActor makes an actor that stands still at first.
func (s *sim) newActor() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.actors++
	s.asleep[s.actors] = s.turn + s.rng.IntN(400)
	return s.actors
}

// run gives turns.
func (s *sim) run(turns int, actors ...func(*repotest.World, *rand.Rand)) {
	s.actors = len(actors)
	for i, act := range actors {
		rng := rand.New(rand.NewPCG(s.rng.Uint64(), 1))
		go func() {
			for !s.ended() {
				act(s.world.Through(gate{s.world.Mem, s, i}), rng)
			}
		}()
	}
	for n := 0; ; n++ {
		synctest.Wait()
		s.mu.Lock()
		s.turn = n
		s.end = s.end || n >= turns || s.failed != nil
		c, ok := s.next(n)
		s.mu.Unlock()
		if !ok {
			break
		}
		close(c.turn)
		synctest.Wait()
		if strings.HasPrefix(c.what, "delete") {
			s.check(c.what)
		}
		s.pass()
	}
	s.check("all had ended")
}

// pass lets time go by: mostly hours, seldom days.
func (s *sim) pass() {
	switch n := s.rng.IntN(100); {
	case n < 10:
		s.world.Pass(time.Duration(s.rng.Int64N(int64(20 * time.Hour))))
	case n < 12:
		s.world.Pass(time.Duration(s.rng.Int64N(int64(8 * 24 * time.Hour))))
	}
}

// next takes a waiting call by chance, and sometimes lets an actor sleep.
func (s *sim) next(n int) (call, bool) {
	if len(s.calls) == 0 {
		return call{}, false
	}
	var awake []int
	for i, c := range s.calls {
		if s.asleep[c.actor] <= n || s.end {
			awake = append(awake, i)
		}
	}
	if len(awake) == 0 {
		clear(s.asleep)
		return s.next(n)
	}
	slices.SortFunc(awake, func(a, b int) int { // calls of one actor may come in any order
		x, y := s.calls[a], s.calls[b]
		return slices.Compare([]string{fmt.Sprint(x.actor), x.what}, []string{fmt.Sprint(y.actor), y.what})
	})
	i := awake[s.rng.IntN(len(awake))]
	c := s.calls[i]
	s.calls = slices.Delete(s.calls, i, i+1)
	if s.rng.IntN(12) == 0 {
		s.asleep[c.actor] = n + s.rng.IntN(200)
	}
	return c, true
}

func (s *sim) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end
}

func (s *sim) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
}

// check reads every point that stands.
func (s *sim) check(after string) {
	points, err := s.world.Open().Points(context.Background(), web)
	if err != nil {
		s.fail(err)
	}
	for _, p := range points {
		if p.Err != nil {
			s.fail(p.Err)
		} else if err := s.world.Check(web, p.Run); err != nil {
			s.fail(fmt.Errorf("after %s: point %s: %w", after, p.Run, err))
		}
	}
}

// write makes a point on one of the newest.
func (s *sim) write(w *repotest.World, rng *rand.Rand) {
	ctx := context.Background()
	points, err := w.Repo.Points(ctx, web)
	if err != nil {
		s.fail(err)
		return
	}
	var base ident.RunID
	if len(points) > 0 && rng.IntN(6) > 0 {
		base = points[len(points)-1-rng.IntN(min(len(points), 2))].Run
	}
	a, err := w.TryBegin(web, base)
	if err != nil {
		if !errors.Is(err, repo.ErrForgotten) {
			s.fail(fmt.Errorf("begin: %w", err))
		}
		return
	}
	disk := repotest.DiskSpec{Name: "root", SizeBytes: 8 * repotest.Block, FromBase: !base.IsZero(), Changes: repotest.Changes(rng.Int64N(4), 1+rng.Int64N(4), 1+rng.Int64N(1000))}
	for range rng.IntN(8) {
		if err := a.Run.Renew(ctx); err != nil {
			s.fail(err)
		}
	}
	err = a.TryUpload(disk)
	if err == nil {
		err = a.TryPublish()
	}
	if err == nil {
		s.mu.Lock()
		s.points++
		s.mu.Unlock()
		return
	}
	// It may only fail because its slot was taken from it, or because the point was forgotten at once.
	slot, slotErr := s.world.Open().Slot(ctx, web, a.Run.ID())
	if slotErr != nil || slot.State != repo.SlotAborted && !slot.Forgotten {
		s.fail(fmt.Errorf("run %s on %s, slot %s: %w", a.Run.ID(), base, slot.State, err))
	}
}

// forget hides a point, or brings one back.
func (s *sim) forget(w *repotest.World, rng *rand.Rand) {
	ctx := context.Background()
	spec := func(run ident.RunID) repo.MarkSpec {
		return repo.MarkSpec{Machine: web, MachineID: w.Machine(web).ID, Run: run, By: "sim"}
	}
	if rng.IntN(3) == 0 {
		tombs, err := w.Repo.Tombstones(ctx, web)
		for run := range tombs {
			changed, backErr := w.Repo.Unforget(ctx, spec(run))
			if backErr != nil && !errors.Is(backErr, repo.ErrGraceOver) {
				err = backErr
			}
			s.count(&s.back, changed && backErr == nil)
			break
		}
		if err != nil {
			s.fail(err)
		}
		return
	}
	points, err := w.Repo.Points(ctx, web)
	if err == nil && len(points) > 2 {
		_, err = w.Repo.Forget(ctx, spec(points[rng.IntN(len(points))].Run))
		s.count(&s.forgotten, err == nil)
	}
	if err != nil {
		s.fail(err)
	}
}

func (s *sim) count(n *int, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if yes {
		*n++
	}
}

func (s *sim) prune(w *repotest.World, _ *rand.Rand) {
	reports, err := Run(context.Background(), w.Repo, Options{By: "sim"})
	if err != nil {
		err = errors.Join(err, reports[0].Err)
	}
	// What another pruner deleted between a listing and a reading was garbage; a look that trips over it gives up.
	if err != nil && !errors.Is(err, ErrSomeFailed) {
		s.fail(err)
	}
	for _, r := range reports {
		s.mu.Lock()
		if r.Deleted {
			s.deleted += len(r.Victims)
		}
		s.aborted += len(r.Aborted)
		s.mu.Unlock()
	}
	if err != nil && len(reports) > 0 {
		s.t.Logf("a pruner gave up: %v", reports[0].Err)
	}
}

func TestNobodyLosesAPointNextToWritersAndPruners(t *testing.T) {
	var all sim
	seeds := testtool.Count(25, 1000)
	if os.Getenv(mutated) != "" {
		seeds = mutantSeeds
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			s := &sim{t: t, world: repotest.New(t), rng: rand.New(rand.NewPCG(uint64(seed), 4)), asleep: map[int]int{}}
			s.world.Machine(web)
			s.run(600, s.write, s.write, s.forget, s.prune, s.prune)
			if s.failed != nil {
				t.Errorf("seed %d: %v", seed, s.failed)
			}
			all.points, all.forgotten, all.back = all.points+s.points, all.forgotten+s.forgotten, all.back+s.back
			all.deleted, all.aborted = all.deleted+s.deleted, all.aborted+s.aborted
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d points, %d forgotten, %d brought back, %d objects deleted, %d runs aborted", all.points, all.forgotten, all.back, all.deleted, all.aborted)
	if all.points == 0 || all.forgotten == 0 || all.back == 0 || all.deleted == 0 || all.aborted == 0 {
		t.Error("something never happened")
	}
}
