package livetest

import (
	"bytes"
	"fmt"
	"time"
)

// interval is when an instant can have been.
type interval struct{ from, to time.Time }

func (i *interval) cut(from, to time.Time) {
	if from.After(i.from) {
		i.from = from
	}
	if !to.IsZero() && (i.to.IsZero() || to.Before(i.to)) {
		i.to = to
	}
}

func (i interval) possible() bool { return i.to.IsZero() || !i.from.After(i.to) }

// judge finds out whether disks can be what the guest's disks were at one instant
// between begun and ended.
// The log up to that instant is forgotten.
func (g *guest) judge(disks [][]byte, begun, ended time.Time) error {
	at := interval{begun, ended}
	for i, w := range g.writers {
		if err := w.match(w.copyLog(), disks, &at); err != nil {
			return fmt.Errorf("writer %d: %w", i, err)
		}
	}
	if !at.possible() {
		return fmt.Errorf("what the disks hold was not there at one instant: one has what was written after %v, another lacks what was there before %v", at.from, at.to)
	}
	return nil
}

// match finds the prefix of the log after which this writer's part of the disks was
// as it is in the point, and narrows when that was. Several in a row may do, since
// zeros over zeros change nothing. The state moves on to the first.
func (w *writer) match(log []operation, disks [][]byte, at *interval) error {
	c := w.compare(disks)
	first, when := -1, interval{}
	end := func() bool { // of a row of prefixes that do
		if first < 0 || !when.possible() {
			first = -1
			return false
		}
		*at = when
		w.forget(log, first)
		return true
	}
	for n := 0; ; n++ {
		partly, ok := c.explained(log, n)
		if !ok && end() {
			return nil
		}
		if ok {
			if first < 0 {
				first, when = n, *at
				w.mark(log, n, partly, &when)
			}
			when.to = at.to
			if n < len(log) {
				when.cut(when.from, log[n].done)
			}
		}
		if n == len(log) {
			if end() {
				return nil
			}
			return fmt.Errorf("after none of its %d writes was the disk as it is in the point; after the last, %d sectors differ", len(log), c.differing)
		}
		c.apply(&log[n])
	}
}

// mark says since when a prefix can have been all there was.
func (w *writer) mark(log []operation, n int, partly bool, when *interval) {
	if n > 0 {
		when.cut(log[n-1].issued, time.Time{})
	}
	if partly {
		when.cut(log[n].issued, time.Time{})
	}
}

// comparison is a writer's part of the disks, as its log goes on, beside that of a
// point.
type comparison struct {
	first     int64
	state     [][]byte
	point     [][]byte
	wrong     [][]bool // by disk and sector
	differing int
}

func (w *writer) compare(disks [][]byte) *comparison {
	c := &comparison{first: w.first}
	for d, state := range w.state {
		c.state = append(c.state, append([]byte(nil), state...))
		c.point = append(c.point, disks[d][w.first:w.last])
		c.wrong = append(c.wrong, make([]bool, len(state)/sector))
		c.look(d, 0, int64(len(state)))
	}
	return c
}

// look compares a range of a disk anew.
func (c *comparison) look(disk int, from, to int64) {
	for at := from; at < to; at += sector {
		is := !bytes.Equal(c.state[disk][at:at+sector], c.point[disk][at:at+sector])
		if was := c.wrong[disk][at/sector]; is && !was {
			c.differing++
		} else if was && !is {
			c.differing--
		}
		c.wrong[disk][at/sector] = is
	}
}

func (c *comparison) apply(o *operation) {
	copy(c.state[o.disk][o.off-c.first:], o.fill())
	c.look(o.disk, o.off-c.first, o.off-c.first+o.len)
}

// explained tells whether the point is the state after n operations, or that with a
// part of the next one.
func (c *comparison) explained(log []operation, n int) (partly, ok bool) {
	if c.differing == 0 || n == len(log) {
		return false, c.differing == 0
	}
	o := &log[n]
	content := o.fill()
	within := 0
	for at := int64(0); at < o.len; at += sector {
		from := o.off - c.first + at
		if !c.wrong[o.disk][from/sector] {
			continue
		}
		within++
		if !bytes.Equal(content[at:at+sector], c.point[o.disk][from:from+sector]) {
			return false, false
		}
	}
	return true, within == c.differing
}

func (w *writer) copyLog() (log []operation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.log {
		log = append(log, *o)
	}
	return log
}

// forget moves the state on over the first n operations of the log. A write that is in
// the point in part stays in the log, as the first.
func (w *writer) forget(log []operation, n int) {
	for _, o := range log[:n] {
		copy(w.state[o.disk][o.off-w.first:], o.fill())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = w.log[n:]
}
