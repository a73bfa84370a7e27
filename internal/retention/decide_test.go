package retention

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

var start = time.Date(2026, 1, 1, 2, 0, 0, 0, time.UTC) // a Thursday

// later is a point long after the others, so that none of them is too young to go.
var later = at(99, start.AddDate(0, 0, 20))

// daily makes points of so many days; point 0 is the oldest.
func daily(days int) []Point {
	var points []Point
	for day := range days {
		points = append(points, at(day, start.AddDate(0, 0, day)))
	}
	return points
}

func at(n int, when time.Time) Point {
	return Point{Run: ident.RunID{1, byte(n >> 8), byte(n)}, Time: when, Stored: when, Disks: []string{"vda"}}
}

// kept gives the numbers of the points that stay, the oldest first.
func kept(decisions []Decision) string {
	var all []string
	for _, d := range decisions {
		if d.Keep != (len(d.Reasons) > 0) {
			panic("a decision without a reason, or a reason without the decision")
		}
		if d.Keep {
			all = append(all, fmt.Sprint(int(d.Run[1])<<8|int(d.Run[2])))
		}
	}
	return strings.Join(all, " ")
}

func TestPoliciesKeepWhatTheySay(t *testing.T) {
	for name, c := range map[string]struct {
		points []Point
		policy Policy
		want   string
	}{
		"nothing to decide":   {nil, Policy{Daily: 1}, ""},
		"no policy":           {daily(3), Policy{}, "0 1 2"},
		"last":                {daily(60), Policy{Last: 3}, "57 58 59"},
		"daily and weekly":    {daily(60), Policy{Daily: 7, Weekly: 4}, "38 45 52 53 54 55 56 57 58 59"},
		"monthly":             {daily(60), Policy{Monthly: 12}, "30 58 59"},
		"yearly":              {daily(60), Policy{Yearly: 2}, "59"},
		"within":              {daily(60), Policy{Within: 48 * time.Hour}, "57 58 59"},
		"more than there are": {daily(3), Policy{Daily: 100}, "0 1 2"},
		"hourly": {[]Point{at(0, start), at(1, start.Add(10*time.Minute)), at(2, start.Add(70*time.Minute)), at(3, start.Add(5*time.Hour)), later},
			Policy{Hourly: 4}, "1 2 3 99"},
	} {
		if got := kept(Decide(c.points, c.policy, time.UTC)); got != c.want {
			t.Errorf("%s: %s stay, want %s", name, got, c.want)
		}
		slices.Reverse(c.points)
		if got := kept(Decide(c.points, c.policy, time.UTC)); got != c.want {
			t.Errorf("%s, in another order: %s stay, want %s", name, got, c.want)
		}
	}
}

func TestDaysAreThoseOfTheZone(t *testing.T) {
	points := []Point{at(0, start.Add(-3*time.Hour)), at(1, start), later} // 23:00 and 02:00
	if got := kept(Decide(points, Policy{Daily: 5}, time.UTC)); got != "0 1 99" {
		t.Error(got)
	}
	if got := kept(Decide(points, Policy{Daily: 5}, time.FixedZone("", -4*3600))); got != "1 99" {
		t.Error(got)
	}
}

func TestWhatNoPolicyTakesAway(t *testing.T) {
	newest := start.AddDate(0, 0, 59)
	one := Policy{Last: 1}
	change := func(n int, f func(*Point)) []Point {
		points := daily(60)
		f(&points[n])
		return points
	}
	for name, c := range map[string]struct {
		points []Point
		want   string
	}{
		"pinned":                        {change(3, func(p *Point) { p.Pinned = true }), "3 59"},
		"its record cannot be read":     {change(3, func(p *Point) { p.Unreadable = true }), "3 59"},
		"the last point of a disk":      {change(3, func(p *Point) { p.Disks = []string{"vda", "gone"} }), "3 59"},
		"the newest is damaged":         {change(59, func(p *Point) { p.Damaged = true }), "58 59"},
		"the newest lacks a disk":       {change(59, func(p *Point) { p.Missing, p.Disks = true, nil }), "58 59"},
		"published now, old by its own": {change(3, func(p *Point) { p.Stored = newest.Add(-23 * time.Hour) }), "3 59"},
		"from the future":               {change(3, func(p *Point) { p.Time = newest.AddDate(10, 0, 0) }), "59"},
	} {
		if got := kept(Decide(c.points, one, time.UTC)); got != c.want {
			t.Errorf("%s: %s stay, want %s", name, got, c.want)
		}
	}
}

func TestACompletePointStandsForItsDay(t *testing.T) {
	points := []Point{at(0, start), at(1, start.Add(time.Hour)), at(2, start.Add(2*time.Hour)), at(3, start.AddDate(0, 0, 1)), later}
	points[2].Missing = true
	if got := kept(Decide(points, Policy{Daily: 3}, time.UTC)); got != "1 3 99" {
		t.Error(got)
	}
	points[0].Missing, points[1].Missing = true, true
	if got := kept(Decide(points, Policy{Daily: 3}, time.UTC)); got != "2 3 99" {
		t.Error(got)
	}
}

func TestAPolicyThatCannotBeMeantIsRefused(t *testing.T) {
	for _, p := range []Policy{{Last: -1}, {Yearly: -3}, {Within: -1}} {
		if p.Check() == nil {
			t.Errorf("%+v is accepted", p)
		}
	}
	if err := (Policy{Daily: 7}).Check(); err != nil {
		t.Error(err)
	}
}
