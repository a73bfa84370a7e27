package nbd

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestAServerThatDoesNotListenIsLost has a server that has closed the direction
// from us to it, and keeps the other one open.
func TestAServerThatDoesNotListenIsLost(t *testing.T) {
	deaf := make(chan struct{})
	s := &script{size: 1 << 20}
	s.onRequest = func(s *scriptSession, q query) bool {
		s.put(q.data(chunkDone, q.off, q.n))
		if err := s.Conn.(*net.UnixConn).CloseRead(); err != nil {
			t.Error(err)
		}
		close(deaf)
		<-t.Context().Done() // which comes before the cleanup
		panic(hangUp{})
	}
	c := s.dial(t, Options{})
	wantPattern(t, c, 0, 100)
	<-deaf
	start := time.Now()
	_, err := c.ReadAt(make([]byte, 100), 0)
	wantError(t, err, ErrLost)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
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
