package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// conn is one connection after its handshake.
type conn struct {
	session
	stream net.Conn // TLS, or the same as raw
	raw    net.Conn // closing it interrupts everything at once, which closing TLS does not
	slots  []slot
	kept   bool // somebody else decides when the server sees the end
	whole  bool // reads are answered in one piece

	mu      sync.Mutex // guards busy, cookie and request of all slots, and retired
	retired bool       // no request is taken any more

	writing sync.Mutex // guards stream's writing side and out
	out     []byte
}

// slot is room for one request in flight. Who has it from the client's free list
// fills it; it goes back when the answer is there.
type slot struct {
	conn    *conn
	place   uint64
	cookie  uint64 // the turn of the slot above its place: one that was answered is never mistaken
	busy    bool
	request request
}

// slotBits of a cookie are the place of the slot.
const slotBits = 16

// ready makes room for requests.
func (k *conn) ready(inFlight int) {
	k.slots = make([]slot, inFlight)
	for i := range k.slots {
		k.slots[i] = slot{conn: k, place: uint64(i), cookie: uint64(i)}
	}
}

// find implements pending.
func (k *conn) find(cookie uint64) *request {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.holder(cookie); s != nil {
		return &s.request
	}
	return nil
}

// holder gives the slot of a request in flight, with mu held.
func (k *conn) holder(cookie uint64) *slot {
	place := cookie & (1<<slotBits - 1)
	if place >= uint64(len(k.slots)) || !k.slots[place].busy || k.slots[place].cookie != cookie {
		return nil
	}
	return &k.slots[place]
}

// start puts a filled slot in flight; false: the connection takes no more. From
// here on the slot is the server's to free, even before it has the request.
func (k *conn) start(s *slot) (cookie uint64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.retired {
		return 0, false
	}
	s.cookie += 1 << slotBits
	s.busy = true
	return s.cookie, true
}

// free takes a slot out of flight. Its request may be filled anew when it is back
// in the free list.
func (k *conn) free(cookie uint64) *slot {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.holder(cookie)
	s.busy = false
	return s
}

// retire takes no more requests, and gives those that are in flight.
func (k *conn) retire() (inFlight []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retired = true
	for i := range k.slots {
		if k.slots[i].busy {
			inFlight = append(inFlight, k.slots[i].cookie)
		}
	}
	return inFlight
}

// write sends one command.
func (k *conn) write(command uint16, cookie uint64, off, n int64) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	p := binary.BigEndian.AppendUint32(k.out[:0], magicRequest)
	flags := uint16(0)
	if k.whole && command == commandRead {
		flags = commandWhole
	}
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, command)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, uint64(off))
	p = binary.BigEndian.AppendUint32(p, uint32(n))
	k.out = p
	if _, err := k.stream.Write(p); err != nil {
		return broken("write to", err)
	}
	return nil
}

// farewell is how long a server may take to hear that we leave.
const farewell = time.Second

// leave says goodbye on a connection with nothing in flight. It does not matter
// whether it arrives.
func (k *conn) leave() {
	if k.kept {
		return
	}
	_ = k.raw.SetWriteDeadline(time.Now().Add(farewell))
	_ = k.write(commandDisconnect, 0, 0, 0)
	if t, ok := k.stream.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
}
