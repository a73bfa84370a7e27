package extent

import "iter"

// cursor reads one stream a range at a time, for operations that walk several
// streams side by side. The owner calls stop in every case.
type cursor struct {
	next func() (Extent, error, bool)
	stop func()

	cur Extent // valid while ok
	ok  bool
	err error // why ok is false, nil at the end of the stream
}

func open(seq Seq) *cursor {
	next, stop := iter.Pull2(checked(seq))
	c := &cursor{next: next, stop: stop}
	c.advance()
	return c
}

// advance moves to the next range. After the end or an error it stays there.
func (c *cursor) advance() {
	if c.err != nil {
		return
	}
	e, err, ok := c.next()
	c.cur, c.err, c.ok = e, err, ok && err == nil
}

// cut drops the part of the current range below off.
func (c *cursor) cut(off int64) {
	if c.cur.End() <= off {
		c.advance()
		return
	}
	if c.cur.Off < off {
		c.cur.Len -= off - c.cur.Off
		c.cur.Off = off
	}
}

// joiner gives ranges to yield, held back by one, so that touching ranges that
// agree on Zero go out as one.
type joiner struct {
	yield   func(Extent, error) bool
	pending Extent // Len 0: nothing is held back
}

// add takes the next range; false says that the consumer has left.
func (j *joiner) add(e Extent) bool {
	switch {
	case e.Len == 0:
		return true
	case j.pending.Len > 0 && j.pending.End() == e.Off && j.pending.Zero == e.Zero:
		j.pending.Len += e.Len
		return true
	}
	old := j.pending
	j.pending = e
	return old.Len == 0 || j.yield(old, nil)
}

// finish gives out what is held back, and then err if there is one.
func (j *joiner) finish(err error) {
	if j.pending.Len > 0 && !j.yield(j.pending, nil) {
		return
	}
	if err != nil {
		j.yield(Extent{}, err)
	}
}
