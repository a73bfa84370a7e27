package retention

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
)

// Point is what a decision needs to know of a point.
type Point struct {
	Run    ident.RunID
	Time   time.Time // the point in time, by the host's clock
	Stored time.Time // when it was published, by the clock of the store
	Disks  []string  // that it has
	// Missing: a disk of the machine could not be captured. Such a point stands for an hour, a day, ... only when there
	// is no other.
	Missing bool
	Pinned  bool
	// Damaged: a verification found that data of it is lost. Unreadable: nobody can tell what it has.
	Damaged, Unreadable bool
}

// at is where the point belongs: no host's clock makes a point younger than the store has it.
func (p Point) at() time.Time {
	if p.Stored.Before(p.Time) {
		return p.Stored
	}
	return p.Time
}

// Decision is what becomes of a point.
type Decision struct {
	Point
	Keep    bool
	Reasons []string // why it stays, at least one; empty when it goes
}

// Decide says what becomes of a machine's points, the oldest first. Days and weeks are those of zone. Ages count from the
// machine's newest point, by the clock of the store: a machine that is not backed up any more loses nothing by that.
func Decide(points []Point, policy Policy, zone *time.Location) []Decision {
	d := &decider{zone: zone}
	for _, p := range points {
		d.all = append(d.all, Decision{Point: p})
		if p.Stored.After(d.newest) {
			d.newest = p.Stored
		}
	}
	slices.SortStableFunc(d.all, func(a, b Decision) int {
		return cmp.Or(b.at().Compare(a.at()), b.Run.Compare(a.Run))
	})
	if policy.Empty() {
		for i := range d.all {
			d.keep(i, "no policy")
		}
	}
	d.rules(policy)
	d.guards()
	slices.Reverse(d.all)
	return d.all
}

// decider has the points from the newest on.
type decider struct {
	all    []Decision
	newest time.Time
	zone   *time.Location
}

func (d *decider) keep(i int, format string, args ...any) {
	d.all[i].Keep = true
	d.all[i].Reasons = append(d.all[i].Reasons, fmt.Sprintf(format, args...))
}

// rules applies the policy.
func (d *decider) rules(policy Policy) {
	kept := 0
	for i, p := range d.all {
		if kept < policy.Last && !p.Missing && !p.Unreadable {
			kept++
			d.keep(i, "last %d", kept)
		}
		if policy.Within > 0 && !p.at().Before(d.all[0].at().Add(-policy.Within)) {
			d.keep(i, "within %s", hours(policy.Within))
		}
	}
	for _, p := range policy.periods() {
		d.period(p)
	}
}

// period keeps one point for each of the newest stretches: the newest complete one, where there is one.
func (d *decider) period(p period) {
	stretches := 0
	for i := 0; i < len(d.all) && stretches < p.count; {
		name := p.name(d.all[i].at().In(d.zone))
		stands := -1
		for ; i < len(d.all) && p.name(d.all[i].at().In(d.zone)) == name; i++ {
			switch {
			case d.all[i].Unreadable:
			case stands < 0, d.all[stands].Missing && !d.all[i].Missing:
				stands = i
			}
		}
		if stands >= 0 {
			d.keep(stands, "%s %s", p.what, name)
			stretches++
		}
	}
}

// guards keeps what no policy may take away.
func (d *decider) guards() {
	newest, sound := map[string]bool{}, map[string]bool{}
	for i, p := range d.all {
		switch age := d.newest.Sub(p.Stored); {
		case p.Pinned:
			d.keep(i, "pinned")
		case p.Unreadable:
			d.keep(i, "its record cannot be read")
		case age < MinimumAge:
			d.keep(i, "younger than %s", hours(MinimumAge))
		}
		if p.Unreadable {
			continue
		}
		for _, disk := range p.Disks {
			switch {
			case !newest[disk]:
				d.keep(i, "newest of disk %s", disk)
			case !p.Damaged && !sound[disk]:
				d.keep(i, "newest of disk %s without known damage", disk)
			}
			newest[disk] = true
			sound[disk] = sound[disk] || !p.Damaged
		}
	}
}

// hours writes a length of time without the zeros that nobody means.
func hours(d time.Duration) string {
	return strings.TrimSuffix(strings.TrimSuffix(d.String(), "0s"), "0m")
}
