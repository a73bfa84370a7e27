package nbd

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

// wantPattern wants n bytes at off to be those of an honest script.
func wantPattern(t testing.TB, c *Client, off, n int64) {
	t.Helper()
	p := make([]byte, n)
	if got, err := c.ReadAt(p, off); err != nil || int64(got) != n {
		t.Fatalf("read %d bytes at %d: %d, %v", n, off, got, err)
	}
	if !bytes.Equal(p, pattern(off, n)) {
		t.Fatalf("read %d bytes at %d: wrong bytes", n, off)
	}
}

func TestAClientIsAReaderAt(t *testing.T) {
	for name, s := range map[string]*script{
		"structured": {size: 5_001},
		"simple":     {size: 5_001, simple: true},
		"blocks":     {size: 5_001, blocks: []uint32{512, 512, 4096}},
		"empty":      {},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t, Options{RequestBytes: 1000})
			if c.Size() != s.size {
				t.Fatalf("size %d, want %d", c.Size(), s.size)
			}
			if err := iotest.TestReader(io.NewSectionReader(c, 0, c.Size()), pattern(0, s.size)); err != nil {
				t.Error(err)
			}
			p := make([]byte, 10)
			for _, off := range []int64{s.size, s.size + 1, 1 << 62} {
				if n, err := c.ReadAt(p, off); n != 0 || err != io.EOF {
					t.Errorf("at %d: %d, %v", off, n, err)
				}
			}
			if s.size > 0 {
				if n, err := c.ReadAt(p, s.size-3); n != 3 || err != io.EOF || !bytes.Equal(p[:3], pattern(s.size-3, 3)) {
					t.Errorf("at the end: %d, %v", n, err)
				}
			}
			if _, err := c.ReadAt(p, -1); !errors.Is(err, ErrInvalid) {
				t.Errorf("at -1: %v", err)
			}
			if n, err := c.ReadAt(nil, 0); n != 0 || err != nil {
				t.Errorf("nothing: %d, %v", n, err)
			}
		})
	}
}

func TestRequestsKeepToTheServersBlocks(t *testing.T) {
	const size = 1<<20 + 100
	for _, blocks := range [][]uint32{{1, 512, 3000}, {512, 512, 5000}, {4096, 4096, 4096}, {65536, 65536, 0xffffffff}} {
		var mu sync.Mutex
		var seen []query
		s := &script{size: size, blocks: blocks, contexts: []string{Allocation}, onRequest: func(_ *scriptSession, q query) bool {
			mu.Lock()
			defer mu.Unlock()
			if q.command != commandDisconnect {
				seen = append(seen, q)
			}
			return false
		}}
		c := s.dial(t, Options{Contexts: []string{Allocation}, RequestBytes: 10_000})
		r := rand.New(rand.NewPCG(1, uint64(blocks[0])))
		for range 200 {
			off := r.Int64N(size)
			n := min(size-off, 1+r.Int64N(50_000))
			wantPattern(t, c, off, n)
			if got := collectStatus(t, c, Allocation, off, n); !slices.Equal(got, []StatusExtent{{Off: off, Len: n}}) {
				t.Fatalf("status of %d at %d: %v", n, off, got)
			}
		}
		wantPattern(t, c, 0, size)
		smallest, largest := int64(blocks[0]), max(int64(blocks[2]), int64(blocks[0]))
		for _, q := range seen {
			if q.off%smallest != 0 || q.n%smallest != 0 && q.off+q.n != size || q.off+q.n > size || q.n <= 0 {
				t.Errorf("blocks %v: a request for %d bytes at %d", blocks, q.n, q.off)
			}
			if q.command == commandRead && (q.n > largest || q.n > max(10_000, smallest)) {
				t.Errorf("blocks %v: a read of %d bytes", blocks, q.n)
			}
			if q.flags != 0 {
				t.Errorf("flags %#x", q.flags)
			}
		}
	}
}

func TestAReadIsNeverLargerThanAServerMayBeAskedFor(t *testing.T) {
	for _, blocks := range [][]uint32{nil, {1, 512, 0xffffffff}, {1, 512, 100_000}} {
		s := &script{size: 40 << 20, blocks: blocks, onRequest: func(_ *scriptSession, q query) bool {
			most := int64(32 << 20)
			if blocks != nil {
				most = min(most, int64(blocks[2]))
			}
			if q.n > most {
				t.Errorf("blocks %v: %d bytes", blocks, q.n)
			}
			return false
		}}
		wantPattern(t, s.dial(t, Options{RequestBytes: 1 << 40}), 0, s.size)
	}
}

func TestAsManyRequestsAreInFlightAsAllowed(t *testing.T) {
	const connections, inFlight = 2, 5
	release := make(chan struct{})
	arrived := make(chan int, 100)
	var group sync.WaitGroup
	s := &script{size: 1 << 20, flags: exportCanMultiConn, onRequest: func(s *scriptSession, q query) bool {
		if q.command != commandRead {
			return false
		}
		arrived <- s.number
		group.Go(func() {
			<-release
			s.put(q.data(chunkDone, q.off, q.n))
		})
		return true
	}}
	c := s.dial(t, Options{Connections: connections, InFlight: inFlight, RequestBytes: 1000})
	group.Go(func() { wantPattern(t, c, 0, 100_000) })
	counts := map[int]int{}
	for range connections * inFlight {
		counts[<-arrived]++
	}
	if counts[0] != inFlight || counts[1] != inFlight {
		t.Errorf("requests by connection: %v", counts)
	}
	select {
	case <-arrived:
		t.Error("one more than allowed")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	group.Wait()
}

func TestAnErrorOfTheServerIsOneOfTheReadAlone(t *testing.T) {
	for name, answer := range map[string]func(q query) []byte{
		"at once":     func(q query) []byte { return q.refuse(chunkDone, 5, "bad\nsector") },
		"then none":   func(q query) []byte { return be(q.refuse(0, 5, "bad\nsector"), q.none()) },
		"data before": func(q query) []byte { return be(q.data(0, q.off, 100), q.refuse(chunkDone, 5, "bad\nsector")) },
		"data behind": func(q query) []byte { return be(q.refuse(0, 5, "bad\nsector"), q.data(chunkDone, q.off, q.n)) },
		"two": func(q query) []byte {
			return be(q.refuse(0, 5, "bad\nsector"), q.refuse(chunkDone, 22, "another"))
		},
		"offset": func(q query) []byte {
			return q.chunk(chunkDone, chunkErrorOffset, be(uint32(5), uint16(10), "bad\nsector", uint64(q.off+1)))
		},
		"of tomorrow": func(q query) []byte {
			return q.chunk(chunkDone, chunkErrorBit+99, be(uint32(5), uint16(10), "bad\nsector", "more"))
		},
		"simple": func(q query) []byte { return simpleReply(5, q.cookie) },
	} {
		for _, simple := range []bool{false, true} {
			if simple && name != "simple" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				s := &script{size: 1 << 20, simple: simple, onRequest: func(s *scriptSession, q query) bool {
					if q.command != commandRead || q.off > 25_000 || q.off+q.n <= 25_000 {
						return false
					}
					s.put(answer(q))
					return true
				}}
				c := s.dial(t, Options{RequestBytes: 10_000})
				p := make([]byte, 100_000)
				n, err := c.ReadAt(p, 1000)
				var refused *Error
				if !errors.As(err, &refused) || refused.Errno != 5 || !errors.Is(err, syscall.EIO) {
					t.Fatalf("error %v", err)
				}
				if name != "simple" && refused.Text != "bad?sector" {
					t.Errorf("text %q", refused.Text)
				}
				if n != 20_000 || !bytes.Equal(p[:n], pattern(1000, int64(n))) {
					t.Errorf("%d bytes before the error", n)
				}
				if c.Err() != nil {
					t.Errorf("the connection is gone: %v", c.Err())
				}
				wantPattern(t, c, 40_000, 100_000)
			})
		}
	}
}

// TestTheFirstOfSeveralErrorsIsGiven has two, the later one of which is reported
// first.
func TestTheFirstOfSeveralErrorsIsGiven(t *testing.T) {
	for _, block := range []uint32{1, 4096} {
		var held []byte
		s := &script{size: 1 << 20, blocks: []uint32{block, 4096, 1 << 20}, onRequest: func(s *scriptSession, q query) bool {
			switch {
			case q.command != commandRead:
				return false
			case q.off == 8192:
				held = q.refuse(chunkDone, 5, "")
			case q.off == 16384:
				s.put(q.refuse(chunkDone, 28, ""), held)
			case q.off == 4096 && block > 1:
				s.put(q.refuse(chunkDone, 12, ""))
			default:
				return false
			}
			return true
		}}
		c := s.dial(t, Options{RequestBytes: 4096})
		n, err := c.ReadAt(make([]byte, 65536), 0)
		want, wantN := syscall.EIO, 8192
		if block > 1 {
			want, wantN = syscall.ENOMEM, 4096
		}
		if n != wantN || !errors.Is(err, want) {
			t.Errorf("block %d: %d, %v", block, n, err)
		}
		if n, err := c.ReadAt(make([]byte, 10), 4100); block > 1 && (n != 0 || !errors.Is(err, syscall.ENOMEM)) {
			t.Errorf("inside a block: %d, %v", n, err)
		}
	}
}

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
