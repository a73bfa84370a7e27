package fault

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/qbackup/qbackup/internal/store"
)

// Store passes calls on to another store, except where its rules say otherwise.
type Store struct {
	inner store.Store

	mu    sync.Mutex
	rng   *rand.Rand
	rules []*Rule
	calls [verbs]int // index Any counts all
	late  []latePut
}

type latePut struct {
	due  int // value of calls[Any]
	send func(context.Context) error
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Wrapper = (*Store)(nil)
)

// errPlanned is the cause in every error that a rule makes.
var errPlanned = errors.New("planned fault")

// New wraps inner. The seed decides the rules with a Chance.
func New(inner store.Store, seed uint64, rules ...Rule) *Store {
	s := &Store{inner: inner, rng: rand.New(rand.NewPCG(seed, 0))}
	s.Add(rules...)
	return s
}

// Add appends rules; they count calls from now on.
func (s *Store) Add(rules ...Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rules {
		s.rules = append(s.rules, &r)
	}
}

// Clear drops all rules: the store is healthy again. Late Puts stay due.
func (s *Store) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = nil
}

// Calls returns how many calls of a verb have arrived.
func (s *Store) Calls(v Verb) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[v]
}

// Settle lets all late Puts take effect. One that finds its key taken is void.
func (s *Store) Settle(ctx context.Context) error { return s.settle(ctx, true) }

func (s *Store) settle(ctx context.Context, all bool) error {
	s.mu.Lock()
	var due, rest []latePut
	for _, l := range s.late {
		if all || l.due <= s.calls[Any] {
			due = append(due, l)
		} else {
			rest = append(rest, l)
		}
	}
	s.late = rest
	s.mu.Unlock()
	for _, l := range due {
		if err := l.send(ctx); err != nil && !errors.Is(err, store.ErrExists) {
			return err
		}
	}
	return nil
}

// arrive counts a call and returns the rules that hit it, at most one per kind.
func (s *Store) arrive(ctx context.Context, v Verb, key string) (hits, error) {
	s.mu.Lock()
	s.calls[Any]++
	s.calls[v]++
	h := hits{}
	for _, r := range s.rules {
		if r.selects(v, key, s.rng.Float64) {
			h = append(h, *r)
		}
	}
	s.mu.Unlock()
	return h, s.settle(ctx, false)
}

type hits []Rule

func (h hits) find(k Kind) (Rule, bool) {
	for _, r := range h {
		if r.Kind == k {
			return r, true
		}
	}
	return Rule{}, false
}

// err makes the error of the first rule of a kind, nil when there is none.
func (h hits) err(k Kind, op, key string) error {
	r, ok := h.find(k)
	if !ok {
		return nil
	}
	class := r.Err
	if class == nil {
		class = store.ErrTransient
	}
	return store.Fail(op, key, class, errPlanned, "")
}

// Unwrap implements store.Wrapper.
func (s *Store) Unwrap() store.Store { return s.inner }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, body store.Body, o store.PutOptions) error {
	h, err := s.arrive(ctx, Put, key)
	if err != nil {
		return err
	}
	if err := h.err(Before, "put", key); err != nil {
		return err
	}
	if r, ok := h.find(Late); ok {
		copied := store.NewBody(bytes.Clone(body.Bytes()))
		s.mu.Lock()
		s.late = append(s.late, latePut{s.calls[Any] + max(r.Delay, 1), func(ctx context.Context) error {
			return s.inner.Put(ctx, key, copied, o)
		}})
		s.mu.Unlock()
		return h.err(Late, "put", key)
	}
	if _, ok := h.find(Overwrite); ok {
		if err := s.inner.Delete(ctx, []string{key}); err != nil {
			return err
		}
	}
	if err := s.inner.Put(ctx, key, body, o); err != nil {
		return err
	}
	return h.err(After, "put", key)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	h, err := s.arrive(ctx, Get, key)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(h.err(Before, "get", key), h.err(After, "get", key)); err != nil {
		return nil, err
	}
	r, err := s.inner.Get(ctx, key, off, n)
	cut, garble := h.err(Truncate, "get", key), false
	if _, ok := h.find(Garble); ok {
		garble = true
	}
	if err != nil || cut == nil && !garble {
		return r, err
	}
	b, err := io.ReadAll(r)
	err = errors.Join(err, r.Close())
	if err != nil {
		return nil, err
	}
	if garble && len(b) > 0 {
		b[len(b)/2] ^= 0x10
	}
	want := int64(len(b))
	if cut != nil {
		b = b[:len(b)/2]
	} else {
		cut = io.EOF
	}
	broken := io.NopCloser(io.MultiReader(bytes.NewReader(b), failing{cut}))
	return store.Exact(broken, key, want, store.ErrTransient), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	h, err := s.arrive(ctx, Stat, key)
	if err != nil {
		return store.Info{}, err
	}
	if err := errors.Join(h.err(Before, "stat", key), h.err(After, "stat", key)); err != nil {
		return store.Info{}, err
	}
	info, err := s.inner.Stat(ctx, key)
	if _, ok := h.find(Resize); ok && err == nil {
		info.Size++
	}
	return info, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		h, err := s.arrive(ctx, List, prefix)
		if err == nil {
			err = h.err(Before, "list", prefix)
		}
		if err != nil {
			yield(store.Info{}, err)
			return
		}
		found, err := s.collect(ctx, prefix, h)
		if cut := h.err(Truncate, "list", prefix); err == nil && cut != nil {
			found, err = found[:len(found)/2], cut
		}
		if err == nil {
			err = h.err(After, "list", prefix)
		}
		for _, info := range found {
			if !yield(info, nil) {
				return
			}
		}
		if err != nil {
			yield(store.Info{}, err)
		}
	}
}

func (s *Store) collect(ctx context.Context, prefix string, h hits) (found []store.Info, err error) {
	_, resize := h.find(Resize)
	omit, omits := h.find(Omit)
	for info, err := range s.inner.List(ctx, prefix) {
		if err != nil {
			return found, err
		}
		if omits && strings.HasPrefix(info.Key, omit.Prefix) {
			continue
		}
		if resize {
			info.Size++
		}
		found = append(found, info)
	}
	return found, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	key := ""
	if len(keys) > 0 {
		key = keys[0]
	}
	h, err := s.arrive(ctx, Delete, key)
	if err != nil {
		return err
	}
	if err := h.err(Before, "delete", key); err != nil {
		return err
	}
	if err := s.inner.Delete(ctx, keys); err != nil {
		return err
	}
	return h.err(After, "delete", key)
}
