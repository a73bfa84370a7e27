package nbd

import "encoding/binary"

// statusReply is the answer to one block status about [off, off+n), of which one
// context is wanted. Servers answer for all of them.
type statusReply struct {
	want     int    // its place in Options.Contexts
	expected uint64 // a bit for every context
	seen     uint64
	runs     statusRuns

	err   error
	ready chan struct{} // closed when err and runs are there
}

// statusRuns is the ranges of one chunk, one after the other. What was asked for
// may be longer than they are.
type statusRuns struct {
	runs []statusRun // neighbours have different flags
	room int64       // how much of what was asked for they do not cover
}

// statusRun has 8 bytes because there may be a million of them. A request is
// shorter than 4 GiB.
type statusRun struct{ n, flags uint32 }

func (s *statusReply) done(_ int64, err error) {
	s.err = err
	close(s.ready)
}

// whole tells whether every context has answered.
func (s *statusReply) whole() bool { return s.seen == s.expected }

// statusChunk reads the chunk of one context.
func (d *replies) statusChunk(c chunk, r *request) error {
	rest := c.n - contextIDBytes
	if rest <= 0 || rest%descriptorBytes != 0 || rest > maxDescriptors*descriptorBytes {
		return violation("a status chunk of %d bytes", c.n)
	}
	p, err := d.small(contextIDBytes)
	if err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(p)
	place, known := d.contexts[id]
	if !known || r.status.seen&(1<<place) != 0 {
		return violation("meta context %d, which was not agreed on or comes twice", id)
	}
	r.status.seen |= 1 << place

	// The other contexts are checked as well, and not kept.
	runs := statusRuns{room: r.n}
	for rest > 0 {
		p, err := d.small(int(min(rest, statusScratch)))
		if err != nil {
			return err
		}
		if err := runs.take(p); err != nil {
			return err
		}
		if place != r.status.want {
			runs.runs = runs.runs[:0]
		}
		rest -= int64(len(p))
	}
	if place == r.status.want {
		r.status.runs = runs
	}
	return nil
}

// take appends whole descriptors. Each has a length, and only the last one may
// go on beyond what was asked for; that part is cut off.
func (s *statusRuns) take(p []byte) error {
	for ; len(p) >= descriptorBytes; p = p[descriptorBytes:] {
		n, flags := int64(binary.BigEndian.Uint32(p)), binary.BigEndian.Uint32(p[4:])
		if n == 0 || s.room == 0 {
			return violation("a status of %d bytes where %d are left", n, s.room)
		}
		n = min(n, s.room)
		s.room -= n
		if last := len(s.runs) - 1; last >= 0 && s.runs[last].flags == flags {
			s.runs[last].n += uint32(n)
			continue
		}
		s.runs = append(s.runs, statusRun{n: uint32(n), flags: flags})
	}
	return nil
}
