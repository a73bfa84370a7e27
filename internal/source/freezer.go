package source

import "context"

// Freezer stops a guest's file systems for an instant, so that what lies on the
// disks is whole. It undoes that by itself after a budget, and when its caller dies.
// It is used from one goroutine.
type Freezer interface {
	// Freeze freezes. With an error nothing is frozen.
	Freeze(ctx context.Context) error
	// Thaw undoes Freeze, and is called after each that had no error, whatever
	// became of ctx. An error means that it is not known to be undone yet; the
	// freezer goes on trying.
	Thaw(ctx context.Context) (Frozen, error)
}

// Frozen is how a freeze went.
type Frozen struct {
	Seconds float64
	// Broken says in a few words why the file systems may not have been frozen to
	// the end; empty: they were.
	Broken string
}
