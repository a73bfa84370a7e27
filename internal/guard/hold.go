package guard

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The causes for undoing, as they end a context.
var (
	errRelease = errors.New("it was released")
	errBudget  = errors.New("the budget is over")
	errSignal  = errors.New("the guard was told to end")
	errParent  = errors.New("the program that asked for it has died")
)

// reason gives the word for a cause.
func reason(cause error) By {
	switch {
	case errors.Is(cause, errRelease):
		return ByRelease
	case errors.Is(cause, errBudget):
		return ByBudget
	case errors.Is(cause, errParent):
		return ByParent
	}
	return BySignal
}

// tryPause is the first pause between two tries; each next is longer, up to tryPauseMax.
const (
	tryPause    = 100 * time.Millisecond
	tryPauseMax = 2 * time.Second
)

// persist calls f until it succeeds or the time is over. It gives the last error then
// that is not of the time.
func persist(ctx context.Context, length time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var last error
	for pause := tryPause; ; pause = min(2*pause, tryPauseMax) {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return last
		}
	}
}

// hold is one thing from the request to hold it until it is undone. Its run is one
// goroutine; who wants to know the end waits for over.
type hold struct {
	deed   deed
	note   note
	folder string
	budget time.Duration
	length time.Duration // Spec.Persist

	// end makes it be undone, with the cause. ctx is ended by that, by signals, and
	// by the parent's death.
	ctx context.Context
	end context.CancelCauseFunc

	over     chan struct{} // closed when it is undone, or was given up
	failed   error         // why it was not held; set when over
	released Released      // set when over
	err      error         // why it was not undone; set when over
}

// run does the thing, says so, waits for a reason to undo it, and undoes it. say is
// called once, with the answer to the request to hold it, and whether this hold is over
// with that; tell is called with what happens without the parent's wish.
func (h *hold) run(say func(held Held, err error, over bool), tell func(string)) {
	defer close(h.over)
	defer h.deed.close()
	defer h.end(nil)
	m, err := writeMarker(h.folder, h.note)
	if err != nil {
		h.failed = fmt.Errorf("%w: write down what is to be undone: %w", ErrNotHeld, err)
		say(Held{}, h.failed, true)
		return
	}
	started := time.Now() // the budget is for the guest, not for our own disk
	ctx, cancel := context.WithTimeoutCause(h.ctx, h.budget, errBudget)
	defer cancel()
	count, err := h.deed.do(ctx)
	at := time.Now()
	if err != nil {
		h.failed = fmt.Errorf("%w: %w", ErrNotHeld, err)
		h.afterFailure(m, err, say, tell)
		return
	}
	say(Held{Count: count, At: at}, nil, false)
	<-ctx.Done()
	cause := context.Cause(ctx)
	h.released = Released{By: reason(cause), Frozen: count}
	h.undo(m, cause, tell)
	h.released.For = time.Since(started)
}

// afterFailure undoes what may have been done in spite of an error. The parent need not
// wait for that.
func (h *hold) afterFailure(m *marker, err error, say func(Held, error, bool), tell func(string)) {
	var refused *refusedError
	switch {
	case !errors.As(err, &refused):
		say(Held{}, h.failed, false)
		h.undo(m, err, tell) // it may come into force later than we wait
	case refused.perhaps:
		say(Held{}, h.failed, false)
		_, _ = h.deed.undo(context.WithoutCancel(h.ctx))
		h.err = m.remove()
	default:
		h.err = m.remove()
		say(Held{}, h.failed, h.err == nil)
	}
}

func (h *hold) undo(m *marker, cause error, tell func(string)) {
	if !errors.Is(cause, errRelease) {
		tell(fmt.Sprintf("%s is undone: %v", h.note.Name, cause))
	}
	err := persist(context.WithoutCancel(h.ctx), h.length, func(ctx context.Context) (err error) {
		h.released.Thawed, err = h.deed.undo(ctx)
		return err
	})
	if err == nil {
		h.err = m.remove()
		return
	}
	err = fmt.Errorf("%s: %w in %v: %w", h.note.Name, ErrNotUndone, h.length, err)
	tell(err.Error())
	h.err = errors.Join(err, m.leave())
}
