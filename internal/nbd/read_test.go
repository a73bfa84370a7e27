package nbd

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
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

// juggler answers reads in pieces, out of order, mixed with the pieces of other
// requests, and ranges of zeros as holes. zero tells where the disk is zero.
type juggler struct {
	mu      sync.Mutex
	r       *rand.Rand
	waiting []([]byte) // chunks and simple replies that may go out in any order
}

const zeroEvery = 8192 // an odd multiple of it begins a range of zeros

func juggled(off, n int64) []byte {
	p := pattern(off, n)
	for i := range p {
		if (off+int64(i))/zeroEvery%2 == 1 {
			p[i] = 0
		}
	}
	return p
}

// take answers a read, later.
func (j *juggler) take(q query) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var chunks [][]byte
	for at := q.off; at < q.off+q.n; {
		n := min(q.off+q.n-at, 1+j.r.Int64N(3000))
		if at/zeroEvery%2 == 1 {
			n = min(n, zeroEvery-at%zeroEvery)
			chunks = append(chunks, q.hole(0, at, n))
		} else {
			chunks = append(chunks, q.chunk(0, chunkData, be(uint64(at), juggled(at, n))))
		}
		at += n
	}
	j.r.Shuffle(len(chunks), func(a, b int) { chunks[a], chunks[b] = chunks[b], chunks[a] })
	if j.r.IntN(2) == 0 {
		chunks = append(chunks, q.none())
	} else {
		last := chunks[len(chunks)-1]
		last[5] |= chunkDone
	}
	// The order within a request stays, so one goroutine per request would do; here
	// they are merged at random.
	merged := make([][]byte, 0, len(chunks)+len(j.waiting))
	for len(chunks)+len(j.waiting) > 0 {
		if j.r.IntN(len(chunks)+len(j.waiting)) < len(chunks) {
			merged, chunks = append(merged, chunks[0]), chunks[1:]
		} else {
			merged, j.waiting = append(merged, j.waiting[0]), j.waiting[1:]
		}
	}
	j.waiting = merged
}

// some gives a part of what waits.
func (j *juggler) some() [][]byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := min(len(j.waiting), 1+j.r.IntN(8))
	out := slices.Clone(j.waiting[:n])
	j.waiting = j.waiting[n:]
	return out
}

func TestRepliesInAnyOrderMakeTheRightBytes(t *testing.T) {
	const size = 1 << 20
	rounds := testtool.Count(40, 1000)
	for seed := range uint64(testtool.Count(4, 40)) {
		jugglers := make([]*juggler, 3)
		stop := make(chan struct{})
		var senders sync.WaitGroup
		s := &script{size: size, flags: exportCanMultiConn, blocks: [][]uint32{nil, {512, 4096, 8192}}[seed%2]}
		s.onRequest = func(s *scriptSession, q query) bool {
			if q.command != commandRead {
				return false
			}
			jugglers[s.number].take(q)
			return true
		}
		s.onOption = func(s *scriptSession, option uint32, _ []byte) bool {
			if option == optionGo {
				j := &juggler{r: rand.New(rand.NewPCG(seed, uint64(s.number)))}
				jugglers[s.number] = j
				senders.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							if out := j.some(); len(out) > 0 {
								s.put(out...)
							} else {
								time.Sleep(20 * time.Microsecond)
							}
						}
					}
				})
			}
			return false
		}
		c := s.dial(t, Options{Connections: 3, InFlight: 5, RequestBytes: 5000})
		var callers sync.WaitGroup
		for i := range 4 {
			callers.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(100+i)))
				for range rounds {
					off := r.Int64N(size)
					n := min(size-off, 1+r.Int64N(60_000))
					p := bytes.Repeat([]byte{0xcc}, int(n))
					if got, err := c.ReadAt(p, off); err != nil || got != len(p) {
						t.Errorf("seed %d: read %d at %d: %d, %v", seed, n, off, got, err)
						return
					}
					if !bytes.Equal(p, juggled(off, n)) {
						t.Errorf("seed %d: read %d at %d: wrong bytes", seed, n, off)
						return
					}
				}
			})
		}
		callers.Wait()
		close(stop)
		senders.Wait()
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
