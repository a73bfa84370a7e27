package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// slackDefault is what the guard may need more than it was given before it counts as dead. It
// covers a slow disk, which the marker waits for, and a busy machine.
const slackDefault = 20 * time.Second

// OwnProgram is the program that runs, also when another version has been put in its place meanwhile.
const OwnProgram = "/proc/self/exe"

// Guard is a guard process, from the parent's side.
type Guard struct {
	spec  Spec
	cmd   *exec.Cmd
	stdin io.WriteCloser
	keep  *net.UnixConn // what is sent here the guard has until it ends

	writing sync.Mutex    // one line at a time
	dead    chan struct{} // closed when the process has ended and what it left is undone
	err     error         // set when dead
	slack   time.Duration

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan response
	done    bool // Done was answered: the end is no failure
}

// Start starts a guard: the program argv, which calls Serve with its standard input and
// output. The guard writes to the same standard error as we do. When the error is not
// nil, nothing runs.
func Start(ctx context.Context, argv []string, spec Spec) (*Guard, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(spec.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	if len(argv) == 0 {
		return nil, fmt.Errorf("start guard: %w: no program", ErrSpec)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	if argv[0] == OwnProgram {
		cmd.Args[0] = os.Args[0]
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	keep, kept, err := keepPair()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	cmd.ExtraFiles = []*os.File{kept}
	err = cmd.Start()
	_ = kept.Close()
	if err != nil {
		_ = keep.Close()
		return nil, fmt.Errorf("start guard: %w: %w", ErrGuard, err)
	}
	g := &Guard{spec: spec, cmd: cmd, stdin: stdin, keep: keep, dead: make(chan struct{}), waiting: map[uint64]chan response{}, slack: slackDefault}
	spec.Kept = true
	go g.read(stdout)
	if _, err := g.ask(ctx, 0, request{Op: opBegin, Spec: &spec}); err != nil {
		g.kill()
		<-g.dead
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return g, nil
}

// Hold does a thing and returns when it is in force. It is undone at Release, or when
// the budget is over (0: BudgetDefault), counted from before it was done. The error is
// an ErrNotHeld, with a class of package qmp where there is one, or an ErrGuard, or that of
// ctx; if anything was done, it is undone without being asked, and Done waits for that.
func (g *Guard) Hold(ctx context.Context, name string, budget time.Duration) (Held, error) {
	if budget <= 0 {
		budget = BudgetDefault
	}
	r, err := g.ask(ctx, budget, request{Op: opHold, Name: name, Budget: budget})
	if ctx.Err() != nil && err != nil {
		_ = g.send(request{Op: opRelease, Name: name}) // nobody will ask for it
	}
	if err != nil {
		return Held{}, fmt.Errorf("hold %s: %w", name, err)
	}
	if r.Held == nil {
		return Held{}, fmt.Errorf("hold %s: %w: it says nothing", name, ErrGuard)
	}
	return *r.Held, nil
}

// Release undoes a thing and says how it ended. It returns when the thing is undone,
// which can take Spec.Persist; with ErrNotUndone it could not be. With the error of ctx it is
// still being undone.
//
// When the guard has died, the thing has been undone by us: Released.By is ByDeath. The
// counts are not known then.
func (g *Guard) Release(ctx context.Context, name string) (Released, error) {
	r, err := g.ask(ctx, g.spec.Persist, request{Op: opRelease, Name: name})
	switch {
	case errors.Is(err, ErrGuard) && !errors.Is(err, ErrNotUndone):
		return Released{By: ByDeath}, nil
	case err != nil:
		return Released{}, fmt.Errorf("release %s: %w", name, err)
	case r.Released == nil:
		return Released{}, fmt.Errorf("release %s: %w: it says nothing", name, ErrGuard)
	}
	return *r.Released, nil
}

// Done ends the guard: what is still held is undone, and nothing is cleaned up. The
// error says what could not be undone, or that the guard had died. It may be called
// once; after it the guard is of no more use.
func (g *Guard) Done() error {
	_, err := g.ask(context.Background(), g.spec.Persist, request{Op: opDone})
	if !errors.Is(err, ErrGuard) {
		g.mu.Lock()
		g.done = true
		g.mu.Unlock()
	}
	_ = g.stdin.Close()
	select {
	case <-g.dead:
	case <-time.After(g.slack):
		g.kill()
		<-g.dead
	}
	if err != nil {
		return fmt.Errorf("end guard: %w", err)
	}
	return nil
}

// Leave is for a parent that could not take away itself what Hooks.Cleanup would: the
// guard does what it does after the parent's death, and is not waited for. Nothing may be
// called after it.
func (g *Guard) Leave() {
	g.mu.Lock()
	g.done = true
	g.mu.Unlock()
	_ = g.stdin.Close()
}

// Pid is the guard's process.
func (g *Guard) Pid() int { return g.cmd.Process.Pid }

// ask sends a request and waits for its response, not longer than length and the
// slack: a guard that has stopped is ended, so that we can undo what it holds.
func (g *Guard) ask(ctx context.Context, length time.Duration, r request) (response, error) {
	answer := make(chan response, 1)
	g.mu.Lock()
	g.last++
	r.ID = g.last
	g.waiting[r.ID] = answer
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.waiting, r.ID)
	}()
	if err := g.send(r); errors.Is(err, ErrSpec) {
		return response{}, err
	} // any other error means that the guard is dead, which is seen below
	late := time.NewTimer(length + g.slack)
	defer late.Stop()
	for {
		select {
		case got := <-answer:
			return got.unpack()
		case <-ctx.Done():
			return response{}, ctx.Err()
		case <-late.C:
			g.kill()
		case <-g.dead:
			select {
			case got := <-answer: // it came before the end
				return got.unpack()
			default:
				return response{}, g.err
			}
		}
	}
}

func (g *Guard) send(r request) error {
	g.writing.Lock()
	defer g.writing.Unlock()
	return writeLine(g.stdin, r)
}

// kill ends the process, whose end read sees.
func (g *Guard) kill() { _ = g.cmd.Process.Kill() }

// read takes responses until the guard has ended, and then does what it cannot do any
// more.
func (g *Guard) read(stdout io.Reader) {
	defer close(g.dead)
	defer g.keep.Close()
	if !g.deliver(stdout) {
		g.kill() // what it says is nothing that we understand
	}
	ended := g.cmd.Wait()
	g.mu.Lock()
	done := g.done
	g.mu.Unlock()
	if done {
		return
	}
	err := fmt.Errorf("%w: it has ended", ErrGuard)
	if ended != nil {
		err = fmt.Errorf("%w: %w", ErrGuard, ended)
	}
	if left := g.undo(); left != nil {
		err = fmt.Errorf("%w; %w", err, left)
	}
	g.err = err
}

// deliver hands responses to those who wait; false: there was something else.
func (g *Guard) deliver(stdout io.Reader) bool {
	lines := newLines(stdout)
	for lines.Scan() {
		var r response
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			return false
		}
		g.mu.Lock()
		answer := g.waiting[r.ID]
		delete(g.waiting, r.ID)
		g.mu.Unlock()
		if answer != nil {
			answer <- r
		}
	}
	return lines.Err() == nil
}

// undo undoes what a dead guard held.
func (g *Guard) undo() error {
	return persist(context.Background(), g.spec.Persist, func(ctx context.Context) error {
		paths, err := markersIn(g.spec.Folder, g.spec.ID)
		failed := []error{err}
		for _, path := range paths {
			_, err := recoverOne(ctx, path, nil)
			// What is to be cleaned up is ours, and we live. A lock that a guard still has while
			// it dies is waited for.
			if !errors.Is(err, errCleanup) {
				failed = append(failed, err)
			}
		}
		return errors.Join(failed...)
	})
}
