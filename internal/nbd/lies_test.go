package nbd

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// readLies are replies to a read of 1000 bytes at 1000 that no server may give.
var readLies = map[string]func(q query) []byte{
	"magic":                  func(q query) []byte { return be(uint32(1), make([]byte, 32)) },
	"unknown cookie":         func(q query) []byte { q.cookie |= 1 << 15; return q.data(chunkDone, q.off, q.n) },
	"cookie of another turn": func(q query) []byte { q.cookie += 1 << slotBits; return q.data(chunkDone, q.off, q.n) },
	"cookie of nobody":       func(q query) []byte { q.cookie = 1<<64 - 1; return q.data(chunkDone, q.off, q.n) },
	"two replies":            func(q query) []byte { return be(q.data(chunkDone, q.off, q.n), q.data(chunkDone, q.off, q.n)) },
	"two ends":               func(q query) []byte { return be(q.data(chunkDone, q.off, q.n), q.none()) },
	"simple reply":           func(q query) []byte { return be(simpleReply(0, q.cookie), pattern(q.off, q.n)) },
	"simple reply, no one":   func(q query) []byte { return simpleReply(5, q.cookie|1<<15) },
	"nothing":                func(q query) []byte { return q.none() },
	"first byte missing":     func(q query) []byte { return q.data(chunkDone, q.off+1, q.n-1) },
	"last byte missing":      func(q query) []byte { return q.data(chunkDone, q.off, q.n-1) },
	"byte in the middle missing": func(q query) []byte {
		return be(q.data(0, q.off, 500), q.data(chunkDone, q.off+501, q.n-501))
	},
	"a byte too much":        func(q query) []byte { return q.data(chunkDone, q.off, q.n+1) },
	"a byte too early":       func(q query) []byte { return q.data(chunkDone, q.off-1, q.n) },
	"same twice":             func(q query) []byte { return be(q.data(0, q.off, q.n), q.data(chunkDone, q.off, q.n)) },
	"overlap by one":         func(q query) []byte { return be(q.data(0, q.off, 501), q.data(chunkDone, q.off+500, q.n-500)) },
	"overlap by one, turned": func(q query) []byte { return be(q.data(0, q.off+500, q.n-500), q.data(chunkDone, q.off, 501)) },
	"hole over data":         func(q query) []byte { return be(q.data(0, q.off, q.n), q.hole(chunkDone, q.off+1, 1)) },
	"data over a hole":       func(q query) []byte { return be(q.hole(0, q.off, q.n), q.data(chunkDone, q.off+q.n-1, 1)) },
	"huge hole":              func(q query) []byte { return q.hole(chunkDone, q.off, 1<<32-1) },
	"hole of nothing":        func(q query) []byte { return q.hole(0, q.off, 0) },
	"hole at 2^64-1":         func(q query) []byte { return q.hole(0, -1, 2) },
	"hole at 2^63-1":         func(q query) []byte { return q.hole(0, 1<<63-1, 2) },
	"hole of another length": func(q query) []byte { return q.chunk(0, chunkHole, make([]byte, 13)) },
	"data without an offset": func(q query) []byte { return q.chunk(0, chunkData, make([]byte, 7)) },
	"data without data":      func(q query) []byte { return q.chunk(0, chunkData, be(uint64(q.off))) },
	"huge data": func(q query) []byte {
		return be(uint32(magicStructured), uint16(0), uint16(chunkData), q.cookie, uint32(1<<32-1), uint64(q.off))
	},
	"none with bytes":    func(q query) []byte { return q.chunk(chunkDone, chunkNone, []byte{1}) },
	"none in the middle": func(q query) []byte { return q.chunk(0, chunkNone, nil) },
	"status":             func(q query) []byte { return q.status(chunkDone, firstID, 1000, 0) },
	"type of tomorrow":   func(q query) []byte { return q.chunk(chunkDone, 6, make([]byte, 12)) },
	"error of nothing":   func(q query) []byte { return q.refuse(chunkDone, 0, "fine") },
	"error of zeros":     func(q query) []byte { return be(q.chunk(chunkDone, chunkError, make([]byte, 6))) },
	"short error":        func(q query) []byte { return q.chunk(chunkDone, chunkError, make([]byte, 5)) },
	"huge error": func(q query) []byte {
		return be(uint32(magicStructured), uint16(0), uint16(chunkError), q.cookie, uint32(1<<31))
	},
	"text longer than the chunk": func(q query) []byte { return q.chunk(chunkDone, chunkError, be(uint32(5), uint16(4), "abc")) },
	"error elsewhere": func(q query) []byte {
		return q.chunk(chunkDone, chunkErrorOffset, be(uint32(5), uint16(0), uint64(q.off+q.n)))
	},
	"error without its place": func(q query) []byte {
		return q.chunk(chunkDone, chunkErrorOffset, be(uint32(5), uint16(1), "12345678"))
	},
	"endless errors": func(q query) []byte { return bytes.Repeat(q.refuse(0, 5, ""), maxErrorChunks+1) },
}

func TestALieInAReplyEndsTheClient(t *testing.T) {
	const inFlight = 4
	for name, lie := range readLies {
		t.Run(name, func(t *testing.T) {
			var reads []query // the first is the one that is lied about
			first := make(chan struct{})
			s := &script{size: 1 << 20, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
				if q.command != commandRead {
					return false
				}
				if reads = append(reads, q); len(reads) == 1 {
					close(first)
				}
				if len(reads) == inFlight {
					s.put(lie(reads[0]))
				}
				return true
			}}
			c := s.dial(t, Options{InFlight: inFlight, RequestBytes: 4096})
			around := bytes.Repeat([]byte{0xcc}, 3000)
			var callers sync.WaitGroup
			callers.Go(func() {
				_, err := c.ReadAt(around[1000:2000:2000], 1000)
				if err != nil || !strings.HasPrefix(name, "two ") { // the first of two is right
					wantError(t, err, ErrLost, ErrProtocol)
				}
			})
			<-first
			for i := range int64(2 * inFlight) { // some of them wait for room
				callers.Go(func() {
					_, err := c.ReadAt(make([]byte, 4096), 8192+i*4096)
					wantError(t, err, ErrLost, ErrProtocol)
				})
			}
			callers.Wait()
			wantError(t, c.Err(), ErrLost, ErrProtocol)
			_, err := c.ReadAt(make([]byte, 1), 0)
			wantError(t, err, ErrLost, ErrProtocol)
			guard := bytes.Repeat([]byte{0xcc}, 1000)
			if !bytes.Equal(around[:1000], guard) || !bytes.Equal(around[2000:], guard) {
				t.Error("bytes beside the buffer were written")
			}
		})
	}
}

func TestAStructuredReplyThatWasNotAgreedOnEndsTheClient(t *testing.T) {
	s := &script{size: 1 << 20, simple: true, onRequest: func(s *scriptSession, q query) bool {
		s.put(q.data(chunkDone, q.off, q.n))
		return true
	}}
	_, err := s.dial(t, Options{}).ReadAt(make([]byte, 100), 0)
	wantError(t, err, ErrLost, ErrProtocol)
}

// TestScatteredRepliesAreBounded sends a read byte by byte, every second one
// first.
func TestScatteredRepliesAreBounded(t *testing.T) {
	s := &script{size: 1 << 20, onRequest: func(s *scriptSession, q query) bool {
		if q.command != commandRead {
			return false
		}
		var p []byte
		for i := int64(0); i < q.n; i += 2 {
			p = append(p, q.data(0, q.off+i, 1)...)
		}
		for i := int64(1); i < q.n; i += 2 {
			p = append(p, q.data(0, q.off+i, 1)...)
		}
		s.put(p, q.none())
		return true
	}}
	c := s.dial(t, Options{RequestBytes: 2 * maxSpans})
	wantPattern(t, c, 0, 2*maxSpans)
	c = s.dial(t, Options{RequestBytes: 2*maxSpans + 2})
	_, err := c.ReadAt(make([]byte, 2*maxSpans+2), 0)
	wantError(t, err, ErrLost, ErrProtocol)
}

func TestAReplyThatIsCutAtAnyByteIsLost(t *testing.T) {
	s := &script{size: 1 << 20, onRequest: func(s *scriptSession, q query) bool {
		if q.command != commandRead {
			return false
		}
		s.put(q.data(0, q.off, 10), q.hole(0, q.off+10, 10), q.data(0, q.off+20, 10), q.none())
		return true
	}}
	start := handshakeBytes(s)
	all := start + 3*structuredBytes + 2*(chunkOffsetBytes+10) + chunkHoleBytes + structuredBytes
	var left atomic.Int64
	s.wrap = func(c net.Conn) net.Conn { return &cutConn{c, int(left.Load())} }
	at := s.listen(t)
	for n := start + 1; n <= all+1; n++ {
		left.Store(int64(n))
		c, err := Dial(t.Context(), at, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.ReadAt(make([]byte, 30), 0)
		if n > all {
			if err != nil {
				t.Errorf("not cut: %v", err)
			}
		} else if n < all { // at all it may be cut before or after
			wantError(t, err, ErrLost)
			wantError(t, c.Err(), ErrLost)
		}
		c.Close()
	}
}

func TestALostConnectionIsSeenWhenNothingIsAsked(t *testing.T) {
	var conns sync.Map
	s := &script{size: 1 << 20, flags: exportCanMultiConn, wrap: func(c net.Conn) net.Conn {
		conns.Store(c, nil)
		return c
	}}
	c := s.dial(t, Options{Connections: 2})
	if c.Err() != nil {
		t.Fatal(c.Err())
	}
	conns.Range(func(k, _ any) bool { // one of the two is enough
		k.(net.Conn).Close()
		return false
	})
	for deadline := time.Now().Add(10 * time.Second); c.Err() == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	wantError(t, c.Err(), ErrLost)
	_, err := c.ReadAt(make([]byte, 1), 0)
	wantError(t, err, ErrLost)
	if c.Close(); errors.Is(c.Err(), ErrClosed) {
		t.Errorf("Close hides that it was lost: %v", c.Err())
	}
}

func TestCloseInterruptsWhatIsPending(t *testing.T) {
	arrived := make(chan struct{}, 100)
	s := &script{size: 1 << 20, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
		arrived <- struct{}{}
		return true // never answered
	}}
	c := s.dial(t, Options{InFlight: 2, Contexts: []string{Allocation}, RequestBytes: 1000})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			_, err := c.ReadAt(make([]byte, 10_000), 0)
			wantError(t, err, ErrClosed)
		})
		group.Go(func() {
			for _, err := range c.Status(t.Context(), Allocation, 0, 1<<20) {
				wantError(t, err, ErrClosed)
			}
		})
	}
	<-arrived
	<-arrived
	start := time.Now()
	for range 3 {
		group.Go(func() { c.Close() })
	}
	group.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	wantError(t, c.Err(), ErrClosed)
	_, err := c.ReadAt(make([]byte, 1), 0)
	wantError(t, err, ErrClosed)
}

func TestCloseSaysGoodbyeWhenNothingIsPending(t *testing.T) {
	goodbyes := make(chan int, 10)
	s := &script{size: 1 << 20, flags: exportCanMultiConn, onRequest: func(s *scriptSession, q query) bool {
		if q.command == commandDisconnect {
			goodbyes <- s.number
		}
		return false
	}}
	c := s.dial(t, Options{Connections: 2})
	wantPattern(t, c, 0, 1<<20)
	c.Close()
	for range 2 {
		select {
		case <-goodbyes:
		case <-time.After(10 * time.Second):
			t.Fatal("no goodbye")
		}
	}
}

func TestErrorsOfTheServerHaveNames(t *testing.T) {
	for errno, want := range map[uint32]error{
		1: syscall.EPERM, 5: syscall.EIO, 12: syscall.ENOMEM, 22: syscall.EINVAL, 28: syscall.ENOSPC,
		75: syscall.EOVERFLOW, 95: syscall.ENOTSUP, 108: syscall.ESHUTDOWN,
	} {
		if err := error(&Error{Errno: errno}); !errors.Is(err, want) {
			t.Errorf("%d is %v", errno, err)
		}
	}
	if err := (&Error{Errno: 77, Text: "odd"}); err.Error() != "NBD server: error 77: odd" || err.Unwrap() != nil {
		t.Errorf("%v, %v", err, err.Unwrap())
	}
}
