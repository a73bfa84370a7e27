package retention

import (
	"errors"
	"fmt"
	"time"
)

// MinimumAge is the age below which no policy takes a point away, unless a policy says more.
const MinimumAge = 24 * time.Hour

// Policy says how many points stay. Each rule keeps what it keeps; a point stays when one rule keeps it. A policy without
// a rule keeps everything.
type Policy struct {
	Last                                   int // the newest points
	Hourly, Daily, Weekly, Monthly, Yearly int // one for each of so many hours, days, ... that have points
	// Within keeps everything that is at most so much older than the machine's newest point.
	Within time.Duration
}

// Empty reports whether the policy has no rule.
func (p Policy) Empty() bool { return p == Policy{} }

// Check refuses a policy that cannot be meant.
func (p Policy) Check() error {
	for _, n := range []int{p.Last, p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly} {
		if n < 0 {
			return fmt.Errorf("%w: %d", errNegative, n)
		}
	}
	if p.Within < 0 {
		return fmt.Errorf("%w: %s", errNegative, p.Within)
	}
	return nil
}

var errNegative = errors.New("a number of points to keep is negative")

// period is a rule that keeps one point for each of some stretches of time.
type period struct {
	count int
	what  string
	name  func(time.Time) string
}

func (p Policy) periods() []period {
	format := func(layout string) func(time.Time) string {
		return func(t time.Time) string { return t.Format(layout) }
	}
	week := func(t time.Time) string {
		year, week := t.ISOWeek()
		return fmt.Sprintf("%d-W%02d", year, week)
	}
	return []period{
		{p.Hourly, "hour", format("2006-01-02 15:00")},
		{p.Daily, "day", format("2006-01-02")},
		{p.Weekly, "week", week},
		{p.Monthly, "month", format("2006-01")},
		{p.Yearly, "year", format("2006")},
	}
}
