package nbd

import (
	"errors"
	"fmt"
	"sync"
)

// Client reads one export. It is safe for parallel use.
type Client struct {
	at      Address
	export  export
	places  map[string]int // of meta contexts in Options.Contexts
	piece   int64          // what one request reads at most; at least a block
	conns   []*conn
	free    chan *slot // slots of all connections, those that were free first in front
	readers sync.WaitGroup

	mu  sync.Mutex
	err error
}

// newClient takes connections of the same export and reads from them.
func newClient(at Address, o Options, conns []*conn) *Client {
	c := &Client{
		at: at, export: conns[0].export, conns: conns, places: map[string]int{},
		free: make(chan *slot, len(conns)*o.InFlight),
	}
	for i, name := range o.Contexts {
		c.places[name] = i
	}
	c.piece = max(min(o.RequestBytes, c.export.maxBlock), c.export.minBlock)
	for _, k := range conns {
		k.ready(o.InFlight)
	}
	// In turns, so that the first requests go to all of them.
	for i := range o.InFlight {
		for _, k := range conns {
			c.free <- &k.slots[i]
		}
	}
	for _, k := range conns {
		c.readers.Go(func() { c.read(k) })
	}
	return c
}

// Size returns the size of the export in bytes.
func (c *Client) Size() int64 { return c.export.size }

// Connections returns how many connections there are.
func (c *Client) Connections() int { return len(c.conns) }

// Err returns nil as long as the client can be used; then an error that matches
// ErrLost, or ErrClosed after Close. A connection that breaks while nothing is
// asked is noticed too.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the session and interrupts what is under way. When it returns,
// nothing of the client runs any more. It may be called again, and from several
// goroutines.
func (c *Client) Close() error {
	c.end(ErrClosed)
	c.readers.Wait()
	return nil
}

// end makes err the error of the client, unless it has one, and cuts all
// connections. The goroutine of each connection then ends its requests.
func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for _, k := range c.conns {
		if inFlight := k.retire(); len(inFlight) == 0 && errors.Is(err, ErrClosed) {
			k.leave()
		}
		k.raw.Close()
	}
}

// lose ends the client because of what happened to a connection.
func (c *Client) lose(cause error) {
	if !errors.Is(cause, ErrLost) {
		cause = fmt.Errorf("%w: %w", ErrLost, cause)
	}
	c.end(fmt.Errorf("%s: %w", c.at, cause))
}

// read is the goroutine of one connection.
func (c *Client) read(k *conn) {
	d := newReplies(k.stream, k.session, link{c, k})
	for {
		if err := d.next(); err != nil {
			c.lose(err)
			break
		}
	}
	for _, cookie := range k.retire() {
		link{c, k}.finish(cookie, c.Err())
	}
}

// link is a connection as part of a client.
type link struct {
	*Client
	*conn
}

// finish implements pending. The slot is free before its caller hears of it.
func (l link) finish(cookie uint64, err error) {
	s := l.conn.free(cookie)
	caller, off := s.request.caller, s.request.off
	s.request.caller, s.request.p, s.request.status = nil, nil, nil
	l.Client.free <- s
	caller.done(off, err)
}

// slot waits for room for a request; nil: cancelled was closed before. Slots come
// back in every case, also from a connection that is lost, so that nobody waits
// for ever.
func (c *Client) slot(cancelled <-chan struct{}) *slot {
	select {
	case s := <-c.free:
		return s
	case <-cancelled:
		return nil
	}
}

// send puts a request in flight; false: the connection takes no more. Its caller
// hears of the end in every case.
func (c *Client) send(s *slot) bool {
	k := s.conn
	command, off, n := s.request.command, s.request.off, s.request.n
	cookie, ok := k.start(s)
	if !ok {
		caller := s.request.caller
		c.free <- s
		caller.done(off, c.Err())
		return false
	}
	if err := k.write(command, cookie, off, n); err != nil {
		c.lose(err)
	}
	return true
}
