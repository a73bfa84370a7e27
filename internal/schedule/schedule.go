package schedule

import (
	"errors"
	"hash/fnv"
	"strings"
	"time"

	cron "github.com/netresearch/go-cron"
)

// ErrExpression: text is no schedule. It does not repeat the text.
var ErrExpression = errors.New(`not a schedule; write a cron expression with five fields ("30 1 * * mon-fri": minute, hour, day, month, weekday), or @hourly, @daily, @weekly, @monthly, @yearly`)

// ErrNever: an expression has no time, such as 31 February.
var ErrNever = errors.New("a schedule that never comes: no month has that day")

// Schedule is a cron expression.
type Schedule struct {
	times cron.Schedule
	// fixed says that the expression names hours; others go by elapsed time when clocks
	// are set back.
	fixed bool
}

// searchFrom is where Parse looks for a first time, far enough from any real one.
var searchFrom = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// Parse reads an expression: five fields, or one of @hourly, @daily, @midnight, @weekly,
// @monthly, @yearly and @annually. As in crontab(5), a day is meant when the day of the
// month or that of the week is right, if both are given.
func Parse(expression string) (*Schedule, error) {
	fields := strings.Fields(expression)
	descriptor := len(fields) == 1 && strings.HasPrefix(fields[0], "@")
	if !descriptor && len(fields) != 5 {
		return nil, ErrExpression
	}
	parser, err := cron.TryNewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.DowOrDom | cron.Descriptor)
	if err != nil {
		return nil, err
	}
	times, err := parser.WithMaxSearchYears(yearsMax).Parse(strings.Join(fields, " "))
	if err != nil {
		return nil, ErrExpression
	}
	s := &Schedule{times, descriptor && fields[0] != "@hourly" || !descriptor && !strings.Contains(fields[1], "*")}
	if s.Next(searchFrom).IsZero() {
		return nil, ErrNever
	}
	return s, nil
}

// yearsMax is how far ahead a time is looked for: 29 February is at most 8 years away.
const yearsMax = 9

// Next is the first time after t; zero: there is none.
func (s *Schedule) Next(t time.Time) time.Time {
	for {
		next := s.times.Next(t)
		if next.IsZero() || !s.fixed || !second(next) {
			return next
		}
		t = next
	}
}

// second tells whether the clock showed the same an hour before.
func second(t time.Time) bool {
	before := t.Add(-time.Hour)
	return before.Hour() == t.Hour() && before.Minute() == t.Minute()
}

// Delay is how much later than its times something begins: at most jitter, and for one
// name always the same.
func Delay(name string, jitter time.Duration) time.Duration {
	if jitter <= 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return time.Duration(h.Sum64() % uint64(jitter))
}
