package nbd

import "slices"

// coverage is which bytes of a read have arrived. Servers send in order, nearly
// always, so it mostly is one span; the protocol allows any order.
type coverage struct {
	spans []span // ascending, apart from each other
}

// span is the half-open range [off, end) of an export.
type span struct{ off, end int64 }

// reset forgets everything and keeps the memory.
func (c *coverage) reset() { c.spans = c.spans[:0] }

// add notes that [off, off+n) has arrived, n > 0. Bytes that come twice are an
// error.
func (c *coverage) add(off, n int64) error {
	end := off + n
	last := len(c.spans) - 1
	if last >= 0 && c.spans[last].end == off {
		c.spans[last].end = end
		return nil
	}
	// The first span that begins at off or behind it.
	next, _ := slices.BinarySearchFunc(c.spans, off, func(s span, off int64) int {
		if s.off < off {
			return -1
		}
		return 1
	})
	if next > 0 && c.spans[next-1].end > off || next < len(c.spans) && c.spans[next].off < end {
		return violation("bytes [%d,%d) overlap what it sent before", off, end)
	}
	before := next > 0 && c.spans[next-1].end == off
	after := next < len(c.spans) && c.spans[next].off == end
	switch {
	case before && after:
		c.spans[next-1].end = c.spans[next].end
		c.spans = slices.Delete(c.spans, next, next+1)
	case before:
		c.spans[next-1].end = end
	case after:
		c.spans[next].off = off
	case len(c.spans) == maxSpans:
		return violation("more than %d pieces of one read out of order", maxSpans)
	default:
		c.spans = slices.Insert(c.spans, next, span{off, end})
	}
	return nil
}

// whole tells whether [off, off+n) has arrived. Nothing outside of it was added.
func (c *coverage) whole(off, n int64) bool {
	return len(c.spans) == 1 && c.spans[0] == span{off, off + n}
}
