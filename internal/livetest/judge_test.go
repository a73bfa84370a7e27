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
// between begun and ended. The log up to that instant is forgotten.
func (g *guest) judge(disks [][]byte, begun, ended time.Time) error {
	var logs [][]operation
	var all [][]candidate
	for i, w := range g.writers {
		log := w.copyLog()
		found, differing := w.candidates(log, disks, interval{begun, ended})
		if len(found) == 0 {
			return fmt.Errorf("writer %d: after none of its %d writes was the disk as it is in the point; after the last, %d sectors differ", i, len(log), differing)
		}
		logs, all = append(logs, log), append(all, found)
	}
	chosen, ok := agree(all, interval{begun, ended})
	if !ok {
		return fmt.Errorf("what the disks hold was not there at one instant between %v and %v: %v", begun, ended, all)
	}
	for i, w := range g.writers {
		w.forget(logs[i], chosen[i])
	}
	return nil
}

// candidate is a number of operations after which a writer's part of the disks was as
// it is in the point, and when it was so.
type candidate struct {
	after int
	when  interval
}

// agree finds one candidate of each writer so that there is an instant at which all
// are true.
func agree(all [][]candidate, at interval) (chosen []int, ok bool) {
	if len(all) == 0 {
		return nil, at.possible()
	}
	for _, c := range all[0] {
		when := at
		when.cut(c.when.from, c.when.to)
		if !when.possible() {
			continue
		}
		if rest, ok := agree(all[1:], when); ok {
			return append([]int{c.after}, rest...), true
		}
	}
	return nil, false
}

// candidates finds the prefixes of the log after which this writer's part of the
// disks was as it is in the point, as far as that can have been in the interval. Several
// may be: zeros over zeros change nothing, and what was written may be zeroed again.
func (w *writer) candidates(log []operation, disks [][]byte, at interval) (found []candidate, differing int) {
	c := w.compare(disks)
	n := 0
	for n < len(log) && !log[n].done.IsZero() && log[n].done.Before(at.from) {
		c.write(&log[n])
		n++
	}
	c.lookAtAll()
	for ; ; n++ {
		if partly, ok := c.explained(log, n); ok {
			var when interval
			w.mark(log, n, partly, &when)
			if n < len(log) {
				when.cut(when.from, log[n].done)
			}
			found = append(found, candidate{n, when})
		}
		if n == len(log) || log[n].issued.After(at.to) {
			return found, c.differing
		}
		c.write(&log[n])
		o := &log[n]
		c.look(o.disk, o.off-c.first, o.off-c.first+o.len)
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
	}
	return c
}

func (c *comparison) lookAtAll() {
	for d, state := range c.state {
		c.look(d, 0, int64(len(state)))
	}
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

// write does an operation, and leaves it to look to compare what it changed.
func (c *comparison) write(o *operation) {
	copy(c.state[o.disk][o.off-c.first:], o.fill())
}

// explained tells whether the point is the state after n operations, or that with a
// part of the next one.
func (c *comparison) explained(log []operation, n int) (partly, ok bool) {
	if c.differing == 0 || n == len(log) {
		return false, c.differing == 0
	}
	o := &log[n]
	if int64(c.differing) > o.len/sector {
		return false, false
	}
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
