package exported

import (
	"context"
	"time"
)

const (
	pollPause    = 5 * time.Millisecond
	pollPauseMax = 100 * time.Millisecond
)

// Until asks QEMU again and again, ever more rarely, until done says so.
func Until(ctx context.Context, done func() (bool, error)) error {
	for wait := pollPause; ; wait = min(2*wait, pollPauseMax) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
