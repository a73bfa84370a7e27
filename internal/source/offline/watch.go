package offline

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/qbackup/qbackup/internal/source"
)

// watch looks for writers at regular times, from one goroutine. The first thing
// that it finds is what every read gets from then on.
type watch struct {
	found atomic.Pointer[error]
	stop  chan struct{}
	done  chan struct{}
}

func startWatch(images []*image) *watch {
	w := &watch{stop: make(chan struct{}), done: make(chan struct{})}
	go w.run(images)
	return w
}

func (w *watch) run(images []*image) {
	defer close(w.done)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		for _, m := range images {
			if err := m.testStarted(); err != nil {
				w.found.CompareAndSwap(nil, &err)
				return
			}
		}
	}
}

// err returns what was found; nil: nothing. A nil watch finds nothing.
func (w *watch) err() error {
	if w == nil {
		return nil
	}
	if p := w.found.Load(); p != nil {
		return *p
	}
	return nil
}

// end stops the goroutine, and waits for it. It may be called again.
func (w *watch) end() {
	if w == nil {
		return
	}
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
}

// testStarted is testWriters for the time after Freeze.
func (m *image) testStarted() error {
	for _, f := range m.files {
		if err := f.locks.test(deniesRead, usesWrite, usesResize); err != nil {
			return f.startedError(err)
		}
	}
	return nil
}

// startedError says that somebody has the image open now, and who it is.
func (f *file) startedError(err error) error {
	var conflict *conflictError
	if !errors.As(err, &conflict) {
		return fmt.Errorf("look for writers of %s: %w", f.path, err)
	}
	started := source.ErrVMStarted
	if who := holders(procFolder, f.id, f.os); len(who) > 0 {
		started = fmt.Errorf("%w: process %d (%s)", started, who[0].pid, who[0].command)
	}
	return &source.UsableError{Path: f.path, Err: started,
		Hint: "nothing was published and the bitmaps are as they were; back it up while it runs or when it is off, or keep it from starting with --hold"}
}
