package nbd

import (
	"bufio"
	"encoding/binary"
	"io"
)

// replies reads what the server sends after the handshake: simple replies and
// chunks of structured ones, in any order, for all requests in flight.
type replies struct {
	r          *bufio.Reader
	structured bool
	contexts   map[uint32]int
	pending    pending
	scratch    []byte // for payloads that are not data
}

// pending is the requests in flight of a connection.
type pending interface {
	// find gives the request of a cookie; nil: there is none.
	find(cookie uint64) *request
	// finish takes a request out that has its answer.
	finish(cookie uint64, err error)
}

func newReplies(r io.Reader, s session, p pending) *replies {
	return &replies{r: bufio.NewReaderSize(r, replyBuffer), structured: s.structured, contexts: s.contexts, pending: p}
}

// next reads one simple reply or one chunk. An error means that the stream
// cannot be read any further.
func (d *replies) next() error {
	head, err := d.r.Peek(4)
	if err != nil {
		return broken("read from", err)
	}
	switch magic := binary.BigEndian.Uint32(head); magic {
	case magicSimple:
		return d.simple()
	case magicStructured:
		return d.structuredChunk()
	default:
		return violation("magic %#x of a reply", magic)
	}
}

// simple reads a simple reply. Where structured ones were agreed on it can only be
// an error: everything else that we ask for has a payload.
func (d *replies) simple() error {
	p, err := d.r.Peek(simpleBytes)
	if err != nil {
		return broken("read from", err)
	}
	errno, cookie := binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint64(p[8:])
	if err := d.skip(simpleBytes); err != nil {
		return err
	}
	r := d.pending.find(cookie)
	if r == nil {
		return violation("a reply to request %#x, which is not in flight", cookie)
	}
	if errno != 0 {
		if err := r.refuse(errno, nil); err != nil {
			return err
		}
		return d.end(cookie, r)
	}
	if d.structured || r.command != commandRead {
		return violation("a simple reply where a structured one has to be")
	}
	if err := d.data(r, r.off, r.n); err != nil {
		return err
	}
	return d.end(cookie, r)
}

// chunk is the header of a chunk.
type chunk struct {
	flags, kind uint16
	cookie      uint64
	n           int64 // payload
}

// structuredChunk reads one chunk of a structured reply.
func (d *replies) structuredChunk() error {
	p, err := d.r.Peek(structuredBytes)
	if err != nil {
		return broken("read from", err)
	}
	c := chunk{
		flags: binary.BigEndian.Uint16(p[4:]), kind: binary.BigEndian.Uint16(p[6:]),
		cookie: binary.BigEndian.Uint64(p[8:]), n: int64(binary.BigEndian.Uint32(p[16:])),
	}
	if err := d.skip(structuredBytes); err != nil {
		return err
	}
	if !d.structured {
		return violation("a structured reply, which was not agreed on")
	}
	r := d.pending.find(c.cookie)
	if r == nil {
		return violation("a reply to request %#x, which is not in flight", c.cookie)
	}
	if err := d.payload(c, r); err != nil {
		return err
	}
	if c.flags&chunkDone != 0 {
		return d.end(c.cookie, r)
	}
	return nil
}

// payload reads what a chunk carries.
func (d *replies) payload(c chunk, r *request) error {
	switch {
	case c.kind == chunkNone:
		if c.n != 0 || c.flags&chunkDone == 0 {
			return violation("an empty chunk of %d bytes with flags %#x", c.n, c.flags)
		}
		return nil
	case c.kind == chunkData && r.command == commandRead:
		return d.dataChunk(c, r)
	case c.kind == chunkHole && r.command == commandRead:
		return d.holeChunk(c, r)
	case c.kind == chunkStatus && r.command == commandBlockStatus:
		return d.statusChunk(c, r)
	case c.kind&chunkErrorBit != 0:
		return d.errorChunk(c, r)
	}
	return violation("a chunk of type %d in a reply to command %d", c.kind, r.command)
}

func (d *replies) dataChunk(c chunk, r *request) error {
	if c.n <= chunkOffsetBytes {
		return violation("a data chunk of %d bytes", c.n)
	}
	p, err := d.small(chunkOffsetBytes)
	if err != nil {
		return err
	}
	return d.data(r, int64(binary.BigEndian.Uint64(p)), c.n-chunkOffsetBytes)
}

// data reads n bytes of the export at off to where the caller wants them.
func (d *replies) data(r *request, off, n int64) error {
	p, err := r.part(off, n)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(d.r, p); err != nil {
		return broken("read from", err)
	}
	return nil
}

// holeChunk is a range that reads as zeros.
func (d *replies) holeChunk(c chunk, r *request) error {
	if c.n != chunkHoleBytes {
		return violation("a hole chunk of %d bytes", c.n)
	}
	p, err := d.small(chunkHoleBytes)
	if err != nil {
		return err
	}
	hole, err := r.part(int64(binary.BigEndian.Uint64(p)), int64(binary.BigEndian.Uint32(p[8:])))
	clear(hole)
	return err
}

// part gives the place of n bytes at off, which must lie inside the read and not
// have come before.
func (r *request) part(off, n int64) ([]byte, error) {
	if n <= 0 || off < r.off || off > r.off+r.n-n {
		return nil, violation("%d bytes at %d in the reply to a read of %d bytes at %d", n, off, r.n, r.off)
	}
	if err := r.arrived.add(off, n); err != nil {
		return nil, err
	}
	return r.p[off-r.off:][:n], nil
}

// errorChunk reads any chunk that reports an error, known or not.
func (d *replies) errorChunk(c chunk, r *request) error {
	if c.n < chunkErrorBytes || c.n > maxErrorPayload {
		return violation("an error chunk of %d bytes", c.n)
	}
	p, err := d.small(int(c.n))
	if err != nil {
		return err
	}
	rest := p[chunkErrorBytes:]
	n := int(binary.BigEndian.Uint16(p[4:]))
	if n > len(rest) || c.kind == chunkErrorOffset && n != len(rest)-8 {
		return violation("an error text of %d bytes in a chunk of %d", n, c.n)
	}
	if c.kind == chunkErrorOffset {
		at := int64(binary.BigEndian.Uint64(rest[n:]))
		if at < r.off || at >= r.off+r.n {
			return violation("an error at %d of a request for %d bytes at %d", at, r.n, r.off)
		}
	}
	return r.refuse(binary.BigEndian.Uint32(p), rest[:n])
}

// end finishes a request after its last chunk.
func (d *replies) end(cookie uint64, r *request) error {
	err, broken := r.outcome()
	if broken != nil {
		return broken
	}
	d.pending.finish(cookie, err)
	return nil
}

// small reads n bytes that are valid until the next call.
func (d *replies) small(n int) ([]byte, error) {
	if cap(d.scratch) < n {
		d.scratch = make([]byte, max(n, 256))
	}
	p := d.scratch[:n]
	if _, err := io.ReadFull(d.r, p); err != nil {
		return nil, broken("read from", err)
	}
	return p, nil
}

func (d *replies) skip(n int) error {
	if _, err := d.r.Discard(n); err != nil {
		return broken("read from", err)
	}
	return nil
}
