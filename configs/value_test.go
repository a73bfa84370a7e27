package configs

import (
	"fmt"
	"testing"
	"time"
)

func TestValuesAreReadAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]Duration{"0": 0, "90s": Duration(90 * time.Second), "7d": Duration(168 * time.Hour), "4w": Duration(672 * time.Hour), "1h30m": Duration(90 * time.Minute)} {
		var d, again Duration
		if err := d.parse(text); err != nil || d != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
		if err := again.parse(d.String()); err != nil || again != d {
			t.Errorf("%s is written as %s, which is %v, %v", text, d, again, err)
		}
	}
	for text, want := range map[string]Bytes{"256MiB": 256 << 20, "10GB": 10e9, "500kB": 500e3, "1B": 1, "1.5GiB": 3 << 29, "0B": 0} {
		var b, again Bytes
		if err := b.parse(text); err != nil || b != want {
			t.Errorf("%s: %d, %v", text, b, err)
		}
		if err := again.parse(b.String()); err != nil || again != b {
			t.Errorf("%s is written as %s, which is %d, %v", text, b, again, err)
		}
	}
	for text, want := range map[string]Rate{"unlimited": 0, "20MB/s": 20e6, "1KiB/s": 1024} {
		var r, again Rate
		if err := r.parse(text); err != nil || r != want {
			t.Errorf("%s: %d, %v", text, r, err)
		}
		if err := again.parse(r.String()); err != nil || again != r {
			t.Errorf("%s is written as %s, which is %d, %v", text, r, again, err)
		}
	}
	for _, bad := range []scalar{new(Duration), new(Bytes), new(Rate), new(Count), new(Freeze), new(clock), new(Days)} {
		for _, text := range []string{"", "x", "-1", "-1d", "99999999999999999999", "1e400d", "0MB/s", "/s", "B", "24:00", "mon-", "70000d"} {
			if err := bad.parse(text); err == nil {
				t.Errorf("%T reads %q as %v", bad, text, fmt.Sprint(bad))
			}
		}
	}
}

func TestATimetableHoldsOverMidnightAndByDay(t *testing.T) {
	c := parsed(t, `
limits:
  upload:
    - {from: "22:00", to: "06:00", days: fri, rate: 3MB/s}
    - {from: "08:00", to: "18:00", days: "mon-wed,fri", rate: 1MB/s}
    - {days: sat-mon, rate: 2MB/s}
`)
	for at, want := range map[string]Rate{
		"2026-11-23 08:00": 1e6, "2026-11-23 17:59": 1e6, "2026-11-23 18:00": 2e6, "2026-11-26 12:00": 0, "2026-11-24 07:59": 0,
		"2026-11-27 23:00": 3e6, "2026-11-28 05:59": 3e6, "2026-11-28 06:00": 2e6, "2026-11-27 05:00": 0, "2026-11-29 23:30": 2e6,
	} {
		now, err := time.Parse("2006-01-02 15:04", at)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Limits.Upload.At(now); got != want {
			t.Errorf("%s: %s, want %s", at, got, want)
		}
	}
	if got := parsed(t, "limits: {upload: 5MB/s}\n").Limits.Upload.At(time.Now()); got != 5e6 {
		t.Errorf("always: %s", got)
	}
}
