package configs

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Duration is a length of time: Go's notation, and d and w for days and weeks.
type Duration time.Duration

// Count is a number of things; it is not negative.
type Count int64

// Bytes is a size: a number with B, kB, MB, GB, TB or KiB, MiB, GiB, TiB.
type Bytes int64

// Rate is bytes a second: a size with /s, or unlimited, which is 0.
type Rate int64

// Freeze says whether the guest's file systems are frozen.
type Freeze string

// The choices of Freeze.
const (
	FreezeOff     Freeze = "off"
	FreezeTry     Freeze = "try"
	FreezeRequire Freeze = "require"
)

// scalar is a value that is read from one word. Its errors do not repeat it.
type scalar interface {
	parse(text string) error
	// pattern is a regular expression for the JSON schema.
	pattern() string
}

var (
	_ scalar = (*Duration)(nil)
	_ scalar = (*Count)(nil)
	_ scalar = (*Bytes)(nil)
	_ scalar = (*Rate)(nil)
	_ scalar = (*Freeze)(nil)
	_ scalar = (*clock)(nil)
)

var errDuration = errors.New("not a duration; write it as 90s, 15m, 26h, 7d or 4w")

// ParseDuration reads a duration as a file has it.
func ParseDuration(text string) (time.Duration, error) {
	var d Duration
	err := d.parse(text)
	return time.Duration(d), err
}

func (d *Duration) parse(text string) error {
	days := time.Duration(0)
	switch {
	case strings.HasSuffix(text, "d"):
		days = 24 * time.Hour
	case strings.HasSuffix(text, "w"):
		days = 7 * 24 * time.Hour
	}
	if days > 0 {
		n, err := strconv.ParseUint(text[:len(text)-1], 10, 16)
		if err != nil || n > uint64(math.MaxInt64/days) {
			return errDuration
		}
		*d = Duration(time.Duration(n) * days)
		return nil
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 {
		return errDuration
	}
	*d = Duration(v)
	return nil
}

func (*Duration) pattern() string { return `^([0-9]+(d|w)|([0-9.]+(ns|us|µs|ms|s|m|h))+|0)$` }

// String writes a duration so that it is read as the same.
func (d Duration) String() string {
	if day := Duration(24 * time.Hour); d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	text := time.Duration(d).String()
	for _, nothing := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, nothing) {
			text = text[:len(text)-2]
		}
	}
	return text
}

func (c *Count) parse(text string) error {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return errors.New("not a number of things; write it as 0, 1, 2 and so on")
	}
	*c = Count(n)
	return nil
}

func (*Count) pattern() string { return `^[0-9]+$` }

var errBytes = errors.New("not a size; write it as 256MiB, 10GB or 500kB")

func (b *Bytes) parse(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 || text[len(text)-1] != 'B' {
		return errBytes
	}
	*b = Bytes(n)
	return nil
}

func (*Bytes) pattern() string { return `^[0-9.]+ ?([kKMGTP]i?)?B$` }

// String writes a size so that it is read as the same.
func (b Bytes) String() string {
	if b == 0 {
		return "0B"
	}
	for _, unit := range []struct {
		bytes Bytes
		name  string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}, {1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} {
		if b%unit.bytes == 0 {
			return fmt.Sprintf("%d%s", b/unit.bytes, unit.name)
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}

const unlimited = "unlimited"

func (r *Rate) parse(text string) error {
	if text == unlimited {
		*r = 0
		return nil
	}
	var b Bytes
	size, ok := strings.CutSuffix(text, "/s")
	if !ok || b.parse(size) != nil || b == 0 {
		return errors.New("not a rate; write it as 20MB/s, or unlimited")
	}
	*r = Rate(b)
	return nil
}

func (*Rate) pattern() string { return `^(unlimited|[0-9.]+ ?([kKMGTP]i?)?B/s)$` }

// String writes a rate so that it is read as the same.
func (r Rate) String() string {
	if r == 0 {
		return unlimited
	}
	return Bytes(r).String() + "/s"
}

func (f *Freeze) parse(text string) error {
	switch v := Freeze(text); v {
	case FreezeOff, FreezeTry, FreezeRequire:
		*f = v
		return nil
	}
	return errors.New("say off, try or require")
}

func (*Freeze) pattern() string { return `^(off|try|require)$` }

// clock is a time of day, in minutes.
type clock int

func (c *clock) parse(text string) error {
	t, err := time.Parse("15:04", text)
	if err != nil {
		return errors.New(`not a time of day; write it as "08:00"`)
	}
	*c = clock(t.Hour()*60 + t.Minute())
	return nil
}

func (*clock) pattern() string { return `^([01][0-9]|2[0-3]):[0-5][0-9]$` }

// String writes the time as it is read.
func (c clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }
