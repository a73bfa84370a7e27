package nbd

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/qbackup/qbackup/internal/testtool"
)

// juggler answers reads in pieces, out of order, mixed with the pieces of other
// requests, and ranges of zeros as holes. zero tells where the disk is zero.
type juggler struct {
	mu      sync.Mutex
	r       *rand.Rand
	waiting [][]byte // chunks, in the order in which they go out
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
	// The last chunk of a request stays behind its others.
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
