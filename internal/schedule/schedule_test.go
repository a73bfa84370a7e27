package schedule

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	_ "time/tzdata"
)

func mustParse(t testing.TB, expression string) *Schedule {
	t.Helper()
	s, err := Parse(expression)
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return s
}

func berlin(t testing.TB) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func at(t testing.TB, zone *time.Location, text string) time.Time {
	t.Helper()
	if tm, err := time.Parse("2006-01-02 15:04 -0700", text); err == nil {
		return tm.In(zone)
	}
	tm, err := time.ParseInLocation("2006-01-02 15:04", text, zone)
	if err != nil {
		t.Fatal(err)
	}
	return tm
}

func TestNextIsTheFirstTimeAfter(t *testing.T) {
	zone := berlin(t)
	for _, c := range []struct{ expression, after, want string }{
		{"@daily", "2026-11-26 12:00", "2026-11-27 00:00"},
		{"@hourly", "2026-11-26 12:00", "2026-11-26 13:00"},
		{"@weekly", "2026-11-26 12:00", "2026-11-29 00:00"},
		{"@monthly", "2026-11-26 12:00", "2026-12-01 00:00"},
		{"@yearly", "2026-11-26 12:00", "2027-01-01 00:00"},
		{"30 1 * * mon-fri", "2026-11-27 02:00", "2026-11-30 01:30"},
		{"*/15 8-9 * * *", "2026-11-27 09:45", "2026-11-28 08:00"},
		{"0 0,12 1 jan,JUL *", "2026-11-27 09:45", "2027-01-01 00:00"},
		{"0 0 13 * 5", "2026-11-26 12:00", "2026-11-27 00:00"}, // either the 13th or a Friday
		{"0 0 29 2 *", "2026-11-26 12:00", "2028-02-29 00:00"},
		{"0 0 29 2 *", "2096-03-01 12:00", "2104-02-29 00:00"},
		{"0 0 * * 7", "2026-11-26 12:00", "2026-11-29 00:00"},
		// Summer time begins: 02:00 to 03:00 is left out.
		{"30 2 * * *", "2026-03-28 12:00", "2026-03-29 03:30 +0200"},
		{"30 2 * * *", "2026-03-29 12:00", "2026-03-30 02:30"},
		{"*/30 * * * *", "2026-03-29 01:30", "2026-03-29 03:00 +0200"},
		{"0 3 * * *", "2026-03-28 12:00", "2026-03-29 03:00"},
		// It ends: 02:00 to 03:00 comes twice.
		{"30 2 * * *", "2026-10-24 12:00", "2026-10-25 02:30 +0200"},
		{"30 2 * * *", "2026-10-25 02:30 +0200", "2026-10-26 02:30"},
		{"30 2 * * *", "2026-10-25 02:10 +0100", "2026-10-26 02:30"},
		{"@hourly", "2026-10-25 02:00 +0200", "2026-10-25 02:00 +0100"},
		{"*/30 * * * *", "2026-10-25 02:30 +0200", "2026-10-25 02:00 +0100"},
		{"0 3 * * *", "2026-10-25 02:30 +0200", "2026-10-25 03:00"},
	} {
		if got := mustParse(t, c.expression).Next(at(t, zone, c.after)); !got.Equal(at(t, zone, c.want)) {
			t.Errorf("%s after %s: %s, want %s", c.expression, c.after, got, c.want)
		}
	}
}

func TestWhatIsNoScheduleIsRefused(t *testing.T) {
	for _, bad := range []string{"", "@", "@never", "@every 5m", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "a * * * *", "*/0 * * * *", "TZ=Nowhere * * * * *", "CRON_TZ=UTC @daily", "1-b * * * *"} {
		if _, err := Parse(bad); !errors.Is(err, ErrExpression) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"0 0 31 2 *", "0 0 30 feb *", "0 0 31 4,6,9,11 *"} {
		if _, err := Parse(bad); !errors.Is(err, ErrNever) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestADelayIsStableAndBounded(t *testing.T) {
	seen := map[time.Duration]bool{}
	for _, name := range []string{"a", "b", "c", "web1", "web2", "web3"} {
		d := Delay(name, time.Hour)
		if d < 0 || d >= time.Hour || d != Delay(name, time.Hour) || Delay(name, 0) != 0 {
			t.Errorf("%s: %v", name, d)
		}
		seen[d] = true
	}
	if len(seen) != 6 {
		t.Errorf("%d delays of 6 names", len(seen))
	}
}

func TestWhatWasMissedWaitsForTheHostToGetUp(t *testing.T) {
	zone := berlin(t)
	s := mustParse(t, "@daily")
	boot := at(t, zone, "2026-11-26 09:00")
	p := Past{Last: at(t, zone, "2026-11-22 00:00"), Boot: boot}
	if d := s.Due(p, boot.Add(time.Minute), 0); d.Due || !d.Next.Equal(boot.Add(15*time.Minute)) {
		t.Errorf("a minute after boot: %+v", d)
	}
	if d := s.Due(p, boot.Add(15*time.Minute), 0); !d.Due {
		t.Errorf("15 minutes after boot: %+v", d)
	}
	// What is due only now does not wait.
	p.Boot = at(t, zone, "2026-11-26 23:55")
	p.Last = at(t, zone, "2026-11-26 00:00")
	if d := s.Due(p, at(t, zone, "2026-11-27 00:00"), 0); !d.Due {
		t.Errorf("%+v", d)
	}
	// What never ran is due at once, on a host that is up.
	if d := s.Due(Past{}, boot, 0); !d.Due {
		t.Errorf("%+v", d)
	}
	if d := s.Due(Past{Boot: boot}, boot.Add(time.Minute), 0); d.Due {
		t.Errorf("%+v", d)
	}
}

// A host that looks at its schedule every minute, over both changes of summer time: each
// time is served once.
func TestNoTimeIsLostAndNoneServedTwice(t *testing.T) {
	zone := berlin(t)
	random := rand.New(rand.NewPCG(4, 1))
	for _, expression := range []string{"30 2 * * *", "@hourly", "0 */6 * * *", "15 3 * * mon"} {
		s := mustParse(t, expression)
		for _, start := range []string{"2026-03-27 00:10", "2026-10-23 00:10"} {
			delay := time.Duration(random.IntN(40)) * time.Minute
			begin := at(t, zone, start)
			p := Past{Last: begin.Add(-time.Minute)}
			var served []time.Time
			for now := begin; now.Before(begin.Add(5 * 24 * time.Hour)); now = now.Add(time.Minute) {
				d := s.Due(p, now, delay)
				if p.Last = d.Last; d.Due {
					served = append(served, now)
					p.Last = now
				}
			}
			var want []time.Time
			for next := s.Next(begin.Add(-time.Minute - delay)); next.Add(delay).Before(begin.Add(5 * 24 * time.Hour)); next = s.Next(next) {
				want = append(want, next.Add(delay))
			}
			if len(served) != len(want) {
				t.Fatalf("%s with %v from %s: served %v, want %v", expression, delay, start, served, want)
			}
			for i := range want {
				if !served[i].Equal(want[i]) {
					t.Errorf("%s: served %v, want %v", expression, served[i], want[i])
				}
			}
		}
	}
}

func TestJumpsOfTheClock(t *testing.T) {
	zone := berlin(t)
	s := mustParse(t, "0 2 * * *")
	for _, c := range []struct {
		name string
		jump time.Duration // of the clock, at 02:30, or 10:00 for long ones
		hour int
		want int // runs from noon to noon two days later, by the clock
	}{
		{"an hour back", -time.Hour, 2, 2},
		{"an hour forward over the time", time.Hour, 1, 2},
		{"a day forward", 24 * time.Hour, 10, 2},
		{"a day back", -24 * time.Hour, 10, 3},
	} {
		start := at(t, zone, "2026-11-25 12:00")
		end := at(t, zone, "2026-11-27 12:00")
		p := Past{Last: at(t, zone, "2026-11-25 02:00")}
		runs, jumped := 0, false
		for now := start; now.Before(end); now = now.Add(time.Minute) {
			if !jumped && now.Day() == 26 && now.Hour() == c.hour && now.Minute() == 30 {
				jumped, now = true, now.Add(c.jump)
			}
			d := s.Due(p, now, 0)
			if p.Last = d.Last; d.Due {
				runs++
				p.Last = now
			}
		}
		if runs != c.want {
			t.Errorf("%s: %d runs, want %d", c.name, runs, c.want)
		}
	}
}

func TestWhatDidNotComeToItsEndIsTriedAgain(t *testing.T) {
	zone := berlin(t)
	s := mustParse(t, "@daily")
	p := Past{Last: at(t, zone, "2026-11-26 00:00"), Unfinished: true}
	if d := s.Due(p, at(t, zone, "2026-11-26 00:14"), 0); d.Due || !d.Next.Equal(at(t, zone, "2026-11-26 00:15")) {
		t.Errorf("%+v", d)
	}
	if d := s.Due(p, at(t, zone, "2026-11-26 00:15"), 0); !d.Due {
		t.Errorf("%+v", d)
	}
	// Not before the host is up.
	p.Boot = at(t, zone, "2026-11-26 03:00")
	if d := s.Due(p, at(t, zone, "2026-11-26 03:01"), 0); d.Due || !d.Next.Equal(at(t, zone, "2026-11-26 03:15")) {
		t.Errorf("%+v", d)
	}
	// Its next time goes before.
	p = Past{Last: at(t, zone, "2026-11-26 00:00"), Unfinished: true}
	if d := mustParse(t, "*/5 * * * *").Due(p, at(t, zone, "2026-11-26 00:05"), 0); !d.Due {
		t.Errorf("%+v", d)
	}
}
