package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Hooks are what Serve calls. Each may be nil.
type Hooks struct {
	// Cleanup gets what Spec.Cleanup holds, after the parent ended without Done. It
	// is called again when it fails, until Spec.Persist is over.
	Cleanup func(ctx context.Context, cleanup json.RawMessage) error
	// Tell gets a line for people about each thing that the guard does without the
	// parent's wish. It is called from several goroutines.
	Tell func(line string)
}

// server is the guard's side.
type server struct {
	hooks Hooks
	outMu sync.Mutex
	out   io.Writer

	// stop ends when nothing may be held any more.
	stop    context.Context
	stopFor context.CancelCauseFunc
	running sync.WaitGroup

	spec   *Spec   // nil until begun
	marker *marker // of the cleanup; nil: there is none
	done   bool

	mu    sync.Mutex
	holds map[string]*hold
}

// Serve is a guard: it does what it reads from in, answers on out, and returns when in
// has ended and nothing is left to do. It is called once in a process of its own,
// and takes the process's signals. The error says what could not be undone or cleaned up.
// The end of ctx counts as a signal.
func Serve(ctx context.Context, in io.Reader, out io.Writer, hooks Hooks) error {
	if hooks.Tell == nil {
		hooks.Tell = func(string) {}
	}
	s := &server{hooks: hooks, out: out, holds: map[string]*hold{}}
	s.stop, s.stopFor = context.WithCancelCause(context.WithoutCancel(ctx))
	defer s.watchSignals(ctx)()
	err := s.listen(in)
	s.stopFor(errParent)
	s.running.Wait()
	for name, h := range s.holds {
		if h.err != nil && !s.done { // Done has said it
			err = errors.Join(err, h.err)
		}
		delete(s.holds, name)
	}
	return errors.Join(err, s.cleanup(context.WithoutCancel(ctx)))
}

// watchSignals makes signals undo what is held. A parent that has died takes the other
// ends of our output with it: to write there must be no reason to die.
func (s *server) watchSignals(ctx context.Context) (end func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	quit := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-signals:
		case <-ctx.Done():
		case <-quit:
		}
		s.stopFor(errSignal) // nothing is held after quit
		<-quit
	})
	return func() {
		close(quit)
		watcher.Wait()
		signal.Stop(signals)
		signal.Stop(broken)
	}
}

// listen serves requests until in ends.
func (s *server) listen(in io.Reader) error {
	lines := newLines(in)
	for lines.Scan() {
		r, err := parseRequest(lines.Bytes())
		if err == nil {
			err = s.take(r)
		}
		if err != nil {
			s.answer(response{ID: r.ID, Failure: pack(err)})
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read requests: %w", err)
	}
	return nil
}

// take begins what a request asks for. What takes time is answered later.
func (s *server) take(r request) error {
	switch {
	case r.Op == opBegin && s.spec == nil:
		return s.begin(r)
	case r.Op == opBegin || s.spec == nil || s.done:
		return fmt.Errorf("%w: %s is out of order", ErrSpec, r.Op)
	case r.Op == opHold:
		return s.hold(r)
	case r.Op == opRelease:
		return s.release(r)
	}
	s.done = true
	s.running.Go(func() { s.answer(response{ID: r.ID, Failure: pack(s.releaseAll())}) })
	return nil
}

// begin takes the spec, and writes down what is to be cleaned up should everybody die.
func (s *server) begin(r request) error {
	if r.Spec.Cleanup != nil && s.hooks.Cleanup != nil {
		m, err := writeMarker(r.Spec.Folder, note{ID: r.Spec.ID, Name: NameCleanup, Since: time.Now(), Cleanup: r.Spec.Cleanup})
		if err != nil {
			return fmt.Errorf("write down what is to be cleaned up: %w", err)
		}
		s.marker = m
	}
	s.spec = r.Spec
	s.answer(response{ID: r.ID})
	return nil
}

func (s *server) hold(r request) error {
	action, ok := s.spec.Actions[r.Name]
	if !ok {
		return fmt.Errorf("%w: there is no action %q", ErrSpec, r.Name)
	}
	if s.stop.Err() != nil {
		return fmt.Errorf("%w: %w", ErrNotHeld, context.Cause(s.stop))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[r.Name] != nil {
		return fmt.Errorf("%w: %s is held, or is being undone", ErrNotHeld, r.Name)
	}
	h := &hold{
		deed: action.deed(), folder: s.spec.Folder, budget: r.Budget, length: s.spec.Persist, over: make(chan struct{}),
		note: note{ID: s.spec.ID, Name: r.Name, Since: time.Now(), Action: action},
	}
	h.ctx, h.end = context.WithCancelCause(s.stop)
	s.holds[r.Name] = h
	say := func(held Held, err error, over bool) {
		if over {
			s.forget(r.Name, h)
		}
		s.answer(response{ID: r.ID, Held: &held, Failure: pack(err)})
	}
	s.running.Go(func() {
		h.run(say, s.hooks.Tell)
		if h.failed != nil && h.err == nil {
			s.forget(r.Name, h) // the parent has no reason to release it
		}
	})
	return nil
}

func (s *server) release(r request) error {
	s.mu.Lock()
	h := s.holds[r.Name]
	s.mu.Unlock()
	if h == nil {
		return fmt.Errorf("%w: %s", ErrNotHeld, r.Name)
	}
	h.end(errRelease)
	s.running.Go(func() {
		<-h.over
		s.forget(r.Name, h)
		s.answer(response{ID: r.ID, Released: &h.released, Failure: pack(errors.Join(h.failed, h.err))})
	})
	return nil
}

// forget makes room for the next hold of that name.
func (s *server) forget(name string, h *hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[name] == h {
		delete(s.holds, name)
	}
}

// releaseAll undoes what is held, and says what could not be undone.
func (s *server) releaseAll() error {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.holds))
	s.mu.Unlock()
	for _, h := range all {
		h.end(errRelease)
	}
	var failed []error
	for _, h := range all {
		<-h.over
		failed = append(failed, h.err)
	}
	return errors.Join(failed...)
}

// cleanup does what the parent would have done before Done.
func (s *server) cleanup(ctx context.Context) error {
	if s.marker == nil {
		return nil
	}
	if s.done {
		return s.marker.remove()
	}
	s.hooks.Tell("cleaning up: " + errParent.Error())
	if s.spec.Kept {
		kept := drain()
		defer runtime.KeepAlive(kept)
	}
	err := persist(ctx, s.spec.Persist, func(ctx context.Context) error { return s.hooks.Cleanup(ctx, s.spec.Cleanup) })
	if err != nil {
		return errors.Join(fmt.Errorf("clean up: %w", err), s.marker.leave())
	}
	return s.marker.remove()
}

// answer writes a response. A parent that is gone needs none.
func (s *server) answer(r response) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	_ = writeLine(s.out, r)
}
