package nbd

import (
	"fmt"
	"io"
	"sync"
)

// transfer is one ReadAt: requests that fill parts of one buffer.
type transfer struct {
	pending sync.WaitGroup
	edges   []edge

	mu     sync.Mutex
	failed int64 // the lowest offset at which a request failed, valid with err
	err    error
}

// edge is a piece of the caller's buffer that is less than a block of the server:
// the block is read elsewhere.
type edge struct {
	from, to []byte
}

// done implements caller.
func (t *transfer) done(off int64, err error) {
	if err != nil {
		t.fail(off, err)
	}
	t.pending.Done()
}

func (t *transfer) fail(off int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil || off < t.failed {
		t.failed, t.err = off, err
	}
}

// ReadAt reads as io.ReaderAt says: less than len(p) bytes only with an error,
// which is io.EOF at the end of the export, an *Error when the server cannot read
// some of it, and one that matches ErrLost or ErrClosed when there is no
// connection any more. It has no time limit of its own; Close interrupts it.
//
// The requests for p are in flight together, over all connections. p is left
// alone once ReadAt has returned.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read NBD export at %d: %w: negative offset", off, ErrInvalid)
	}
	if len(p) == 0 {
		return 0, nil
	}
	room := c.export.size - off
	if room <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), room))
	var t transfer
	c.fetch(&t, p[:n], off)
	t.pending.Wait()
	if t.err != nil {
		n = int(max(0, t.failed-off))
	}
	for _, e := range t.edges {
		copy(e.to, e.from)
	}
	if t.err != nil {
		return n, fmt.Errorf("read NBD export at %d: %w", off+int64(n), t.err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// fetch sends the requests of a transfer.
func (c *Client) fetch(t *transfer, p []byte, off int64) {
	block, size := c.export.minBlock, c.export.size
	for at, end := off, off+int64(len(p)); at < end; {
		part := p[at-off:]
		from, to := at, part
		lead := at % block
		if lead > 0 || end-at < block {
			from = at - lead
			to = make([]byte, min(block, size-from))
			part = part[:min(int64(len(to))-lead, end-at)]
			t.edges = append(t.edges, edge{from: to[lead:], to: part})
		} else {
			n := min(c.piece, end-at)
			if at+n < size {
				n -= n % block
			}
			to = part[:n]
			part = to
		}
		if !c.fetchPiece(t, to, from) {
			return
		}
		at += int64(len(part))
	}
}

// fetchPiece sends one request; false: there is no use in more.
func (c *Client) fetchPiece(t *transfer, p []byte, off int64) bool {
	s := c.slot(nil)
	t.pending.Add(1)
	s.request = request{command: commandRead, off: off, n: int64(len(p)), caller: t, p: p, arrived: s.request.arrived}
	s.request.arrived.reset()
	return c.send(s)
}
