package configs

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Images are the images of a machine, each [NAME=][raw:]PATH as on the command line. In
// a file they are a list of these, or a mapping from disk names to paths.
type Images []string

func (i *Images) decode(d *decoder, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		d.list(n, path, func(item *yaml.Node, at string) {
			var image string
			if d.word(item, at, &image) {
				*i = append(*i, image)
			}
		})
		return
	}
	d.pairs(n, path, func(key, value *yaml.Node, at string) {
		var image string
		if d.word(value, at, &image) {
			*i = append(*i, key.Value+"="+image)
		}
	})
}

// Timetable is a rate that depends on the time of day. Of the periods that hold at a
// time the first one counts; where none does there is no limit.
type Timetable []Period

// Period is one line of a timetable. From and To equal: all day. To before From: over
// midnight, and Days are those on which it begins.
type Period struct {
	From clock `yaml:"from" doc:"beginning, as 08:00"`
	To   clock `yaml:"to" doc:"end, as 18:00"`
	Days Days  `yaml:"days" doc:"days of the week: mon-fri, or sat,sun; without, all"`
	Rate Rate  `yaml:"rate" doc:"bytes a second, as 20MB/s, or unlimited"`
}

func (t *Timetable) decode(d *decoder, n *yaml.Node, path string) {
	if n.Kind == yaml.ScalarNode {
		var p Period
		if d.scalar(n, path, &p.Rate) {
			*t = Timetable{p}
		}
		return
	}
	d.list(n, path, func(item *yaml.Node, at string) {
		var p Period
		d.structure(item, at, &p)
		*t = append(*t, p)
	})
}

// At gives the rate at a time, in its zone.
func (t Timetable) At(now time.Time) Rate {
	minute := clock(now.Hour()*60 + now.Minute())
	for _, p := range t {
		today, yesterday := p.Days.on(now.Weekday()), p.Days.on((now.Weekday()+6)%7)
		holds := false
		switch {
		case p.From == p.To:
			holds = today
		case p.From < p.To:
			holds = today && minute >= p.From && minute < p.To
		default:
			holds = today && minute >= p.From || yesterday && minute < p.To
		}
		if holds {
			return p.Rate
		}
	}
	return 0
}

// Days is a set of days of the week, a bit each from Sunday on; none is all.
type Days uint8

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func (s Days) on(day time.Weekday) bool { return s == 0 || s>>day&1 == 1 }

func (s *Days) parse(text string) error {
	*s = 0
	for part := range strings.SplitSeq(strings.ToLower(text), ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			last = first
		}
		from, to := dayNumber(first), dayNumber(last)
		if from < 0 || to < 0 {
			return errDays
		}
		for day := from; ; day = (day + 1) % 7 {
			*s |= 1 << day
			if day == to {
				break
			}
		}
	}
	return nil
}

func dayNumber(name string) int {
	for i, d := range dayNames {
		if d == name {
			return i
		}
	}
	return -1
}

func (*Days) pattern() string { return `^(?i)((sun|mon|tue|wed|thu|fri|sat)[-, ]*)+$` }

// String writes the days so that they are read as the same.
func (s Days) String() string {
	var names []string
	for i, name := range dayNames {
		if s>>i&1 == 1 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}
