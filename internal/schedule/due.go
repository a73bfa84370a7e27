package schedule

import "time"

const (
	// setBack is how far the clock may be set back without anything running twice for it.
	setBack = 2 * time.Hour
	// afterBoot is how long what was missed while the host was off waits: others have to
	// get up first.
	afterBoot = 15 * time.Minute
	// again is how long what was begun and did not come to its end waits for another try.
	again = 15 * time.Minute
)

// Past is what is known of what ran.
type Past struct {
	// Last is when it was last begun because it was due; zero: never.
	Last time.Time
	// Unfinished says that what was begun then did not come to its end: the program or the
	// host died, or it was stopped.
	Unfinished bool
	// Boot is when the host began to run; zero: long ago.
	Boot time.Time
}

// Decision says whether something is due.
type Decision struct {
	Due bool
	// Next is when it is due, now or later; zero: never again.
	Next time.Time
	// Last is what Past.Last must be from now on: the same, unless the clock was set back by
	// a lot. Then what was begun in a future that did not come counts as begun now.
	Last time.Time
}

// Due decides whether something with this schedule is due at now, if delay (see Delay) is
// how much later it begins than its times. Times that were missed are made up for by one
// run. What never ran is due at once.
func (s *Schedule) Due(p Past, now time.Time, delay time.Duration) Decision {
	d := Decision{Last: p.Last}
	if d.Last.After(now.Add(setBack)) {
		d.Last = now
	}
	if d.Last.IsZero() {
		d.Next = p.Boot
	} else {
		// Last was begun delay or more after the time it was for: the time that follows is
		// that after Last without its delay.
		next := s.Next(d.Last.Add(-delay).In(now.Location()))
		if next.IsZero() {
			return d
		}
		if d.Next = next.Add(delay); p.Unfinished && d.Last.Add(again).Before(d.Next) {
			d.Next = d.Last.Add(again)
		}
	}
	if boot := p.Boot.Add(afterBoot); !p.Boot.IsZero() && d.Next.Before(boot) && !d.Next.After(p.Boot) {
		d.Next = boot
	}
	if d.Due = !d.Next.After(now); d.Due {
		d.Next = now
	}
	return d
}
