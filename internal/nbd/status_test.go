package nbd

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/testtool"
)

func collectStatus(t testing.TB, c *Client, name string, off, n int64) []StatusExtent {
	t.Helper()
	var all []StatusExtent
	for e, err := range c.Status(t.Context(), name, off, n) {
		if err != nil {
			t.Fatalf("status of %d at %d: %v", n, off, err)
		}
		all = append(all, e)
	}
	return all
}

// statusModel is flags for every byte of a small disk.
type statusModel []uint32

func newStatusModel(r *rand.Rand, size int64) statusModel {
	m := make(statusModel, size)
	for at := int64(0); at < size; {
		n := min(size-at, 1+r.Int64N(2000))
		flags := r.Uint32N(4)
		if r.IntN(10) == 0 {
			flags |= 1 << 31
		}
		for i := range n {
			m[at+i] = flags
		}
		at += n
	}
	return m
}

// extents is the truth about [off, off+n), of the flags in mask.
func (m statusModel) extents(off, n int64, mask uint32) []StatusExtent {
	var all []StatusExtent
	for i := off; i < off+n; i++ {
		if last := len(all) - 1; last >= 0 && all[last].Flags == m[i]&mask {
			all[last].Len++
		} else {
			all = append(all, StatusExtent{Off: i, Len: 1, Flags: m[i] & mask})
		}
	}
	return all
}

// answer is descriptors as a server may give them: cut into pieces, ended early
// at a multiple of block, or going on beyond what was asked.
func (m statusModel) answer(r *rand.Rand, off, n, block int64) []uint32 {
	var all []uint32
	end := min(off+1+r.Int64N(n), int64(len(m)))
	switch r.IntN(3) {
	case 0:
		end = off + n
	case 1:
		if n > 10 {
			end = off + n - r.Int64N(n/10)
		}
	}
	end = min(end+(block-end%block)%block, int64(len(m)))
	for _, e := range m.extents(off, int64(len(m))-off, 1<<32-1) {
		for e.Len > 0 && e.Off < end {
			piece := e.Len
			if r.IntN(4) == 0 {
				piece = 1 + r.Int64N(e.Len)
			}
			all = append(all, uint32(piece), e.Flags)
			e.Off += piece
			e.Len -= piece
		}
	}
	return all
}

func TestStatusEqualsWhatTheServerKnows(t *testing.T) {
	const size = 100_000
	contexts := []string{Allocation, "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}
	for seed := range uint64(testtool.Count(10, 200)) {
		r := rand.New(rand.NewPCG(seed, 5))
		models := make([]statusModel, len(contexts))
		for i := range models {
			models[i] = newStatusModel(r, size)
		}
		block := int64(1)
		s := &script{size: size, contexts: contexts, onRequest: func(s *scriptSession, q query) bool {
			if q.command != commandBlockStatus {
				return false
			}
			for _, i := range r.Perm(len(contexts)) {
				s.put(q.status(0, uint32(firstID+i), models[i].answer(r, q.off, q.n, block)...))
			}
			s.put(q.none())
			return true
		}}
		if seed%2 == 1 {
			block = 1 << (seed % 13)
			s.blocks = []uint32{uint32(block), 4096, 1 << 20}
		}
		// Places in Options differ from those of the server.
		c := s.dial(t, Options{Contexts: []string{contexts[2], contexts[0], contexts[1]}})
		ranges := rand.New(rand.NewPCG(seed, 6))
		for range 12 {
			off := ranges.Int64N(size)
			n := ranges.Int64N(size - off + 1)
			if ranges.IntN(10) == 0 {
				off, n = 0, size
			}
			for i, name := range contexts {
				if got, want := collectStatus(t, c, name, off, n), models[i].extents(off, n, 1<<32-1); !slices.Equal(got, want) {
					t.Fatalf("seed %d, %s of %d at %d:\n got %v\nwant %v", seed, name, n, off, got, want)
				}
			}
			checkExtents(t, c, models, off, n)
		}
	}
}

// checkExtents compares Dirty and Zeros with models of base:allocation and a
// bitmap.
func checkExtents(t *testing.T, c *Client, models []statusModel, off, n int64) {
	t.Helper()
	var dirty, zeros []extent.Extent
	for _, e := range models[1].extents(off, n, FlagDirty) {
		if e.Flags != 0 {
			dirty = append(dirty, extent.Extent{Off: e.Off, Len: e.Len})
		}
	}
	for _, e := range models[0].extents(off, n, FlagZero) {
		zeros = append(zeros, extent.Extent{Off: e.Off, Len: e.Len, Zero: e.Flags != 0})
	}
	if got, err := extent.Collect(c.Dirty(t.Context(), DirtyBitmap("a"), off, n)); err != nil || !slices.Equal(got, dirty) {
		t.Fatalf("dirty of %d at %d: %v\n got %v\nwant %v", n, off, err, got, dirty)
	}
	if got, err := extent.Collect(c.Zeros(t.Context(), off, n)); err != nil || !slices.Equal(got, zeros) {
		t.Fatalf("zeros of %d at %d: %v\n got %v\nwant %v", n, off, err, got, zeros)
	}
}

func TestLargeRangesAreAskedForInPieces(t *testing.T) {
	const size = 1<<62 + 1<<40
	s := &script{size: size, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
		if q.command != commandBlockStatus {
			return false
		}
		if q.n > maxStatusBytes {
			t.Errorf("asked about %d bytes", q.n)
		}
		s.put(q.status(chunkDone, firstID, 1<<32-1, 3)) // beyond what was asked for
		return true
	}}
	c := s.dial(t, Options{Contexts: []string{Allocation}})
	for _, off := range []int64{0, 12345, size - 5<<30} {
		if got := collectStatus(t, c, Allocation, off, 5<<30); !slices.Equal(got, []StatusExtent{{Off: off, Len: 5 << 30, Flags: 3}}) {
			t.Errorf("at %d: %v", off, got)
		}
	}
}

// statusLies are replies to a block status about 1000 bytes at 1000.
var statusLies = map[string]func(q query) []byte{
	"one of both twice": func(q query) []byte {
		return be(q.status(0, firstID, 1000, 0), q.status(0, firstID+1, 1000, 0), q.status(chunkDone, firstID, 1000, 1))
	},
	"no context":        func(q query) []byte { return q.none() },
	"one of two":        func(q query) []byte { return q.status(chunkDone, firstID, 1000, 0) },
	"one context twice": func(q query) []byte { return be(q.status(0, firstID, 1000, 0), q.status(chunkDone, firstID, 1000, 0)) },
	"unknown context": func(q query) []byte {
		return be(q.status(0, firstID, 1000, 0), q.status(chunkDone, firstID+2, 1000, 0))
	},
	"no descriptor":         func(q query) []byte { return q.status(0, firstID) },
	"half a descriptor":     func(q query) []byte { return q.status(0, firstID, 1000, 0, 1) },
	"no id":                 func(q query) []byte { return q.chunk(0, chunkStatus, nil) },
	"length 0":              func(q query) []byte { return q.status(0, firstID, 0, 0) },
	"length 0 at the end":   func(q query) []byte { return q.status(0, firstID, 1000, 0, 0, 0) },
	"length 0 in another":   func(q query) []byte { return q.status(0, firstID+1, 0, 1) },
	"one beyond the end":    func(q query) []byte { return q.status(0, firstID, 999, 0, 1, 1, 1, 0) },
	"one beyond, no bounds": func(q query) []byte { return q.status(0, firstID, 1<<32-1, 0, 1<<32-1, 1) },
	"too many": func(q query) []byte {
		return be(uint32(magicStructured), uint16(0), uint16(chunkStatus), q.cookie, uint32(4+8*(maxDescriptors+1)))
	},
	"huge": func(q query) []byte {
		return be(uint32(magicStructured), uint16(0), uint16(chunkStatus), q.cookie, uint32(1<<32-4))
	},
	"data":         func(q query) []byte { return q.data(chunkDone, q.off, q.n) },
	"hole":         func(q query) []byte { return q.hole(chunkDone, q.off, q.n) },
	"simple reply": func(q query) []byte { return simpleReply(0, q.cookie) },
}

func TestALieInAStatusEndsTheClient(t *testing.T) {
	for name, lie := range statusLies {
		t.Run(name, func(t *testing.T) {
			s := &script{size: 1 << 20, contexts: []string{Allocation, testContext}, onRequest: func(s *scriptSession, q query) bool {
				if q.command != commandBlockStatus {
					return false
				}
				s.put(lie(q))
				return true
			}}
			c := s.dial(t, Options{Contexts: []string{Allocation, testContext}})
			for _, name := range []string{testContext, Allocation} {
				_, err := extent.Collect(c.Dirty(t.Context(), name, 1000, 1000))
				wantError(t, err, ErrLost, ErrProtocol)
			}
			wantError(t, c.Err(), ErrLost, ErrProtocol)
		})
	}
}

// TestAStatusThatDoesNotGetOnIsAnError has a server that is asked for a block and
// answers for less than the part of it that is wanted.
func TestAStatusThatDoesNotGetOnIsAnError(t *testing.T) {
	s := &script{size: 1 << 20, blocks: []uint32{4096, 4096, 1 << 20}, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
		if q.command == commandBlockStatus {
			s.put(q.status(chunkDone, firstID, 100, 0))
		}
		return q.command == commandBlockStatus
	}}
	c := s.dial(t, Options{Contexts: []string{Allocation}})
	for _, off := range []int64{0, 1000} {
		_, err := extent.Collect(c.Zeros(t.Context(), off, 1000))
		wantError(t, err, ErrProtocol)
	}
	wantPattern(t, c, 0, 1<<20)
}

func TestAnErrorOfAStatusComesAfterWhatWasRight(t *testing.T) {
	s := &script{size: 10_000, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
		switch {
		case q.command != commandBlockStatus:
			return false
		case q.off < 5000:
			s.put(q.status(chunkDone, firstID, 2000, 0, 500, 3))
		case q.off < 7000:
			s.put(simpleReply(22, q.cookie))
		default:
			s.put(q.refuse(chunkDone, 22, "no"))
		}
		return true
	}}
	c := s.dial(t, Options{Contexts: []string{Allocation}})
	for _, n := range []int64{6000, 10_000} {
		got, err := extent.Collect(c.Zeros(t.Context(), 0, n))
		var refused *Error
		if !errors.As(err, &refused) || refused.Errno != 22 {
			t.Errorf("error %v", err)
		}
		want := []extent.Extent{{Off: 0, Len: 2000}, {Off: 2000, Len: 500, Zero: true}, {Off: 2500, Len: 2000}, {Off: 4500, Len: 500, Zero: true}}
		if !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
	}
	wantPattern(t, c, 0, 10_000)
}

func TestACancelledStatusLeavesTheClientInStep(t *testing.T) {
	var asked atomic.Int64
	release := make(chan struct{})
	arrived := make(chan struct{}, 100)
	s := &script{size: 1 << 20, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
		if q.command == commandBlockStatus && asked.Add(1) <= 2 {
			arrived <- struct{}{}
			go func() { // the client waits for the answer before the test ends
				<-release
				s.put(q.status(0, firstID, 100, 0))
				s.put(q.none())
			}()
			return true
		}
		return false
	}}
	c := s.dial(t, Options{Contexts: []string{Allocation}, InFlight: 2})
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		_, err := extent.Collect(c.Zeros(ctx, 0, 1<<20))
		wantError(t, err, context.Canceled)
	}
	// Both places are taken by requests that nobody waits for.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := extent.Collect(c.Zeros(ctx, 0, 1<<20))
		done <- err
	}()
	cancel()
	wantError(t, <-done, context.Canceled)
	close(release)
	wantPattern(t, c, 0, 1<<20)
	if got := collectStatus(t, c, Allocation, 0, 1<<20); !slices.Equal(got, []StatusExtent{{Len: 1 << 20}}) {
		t.Errorf("got %v", got)
	}
}

func TestAStatusMayBeLeftEarly(t *testing.T) {
	s := &script{size: 1000, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
		if q.command == commandBlockStatus {
			s.put(q.status(chunkDone, firstID, 1, uint32(q.off%2)))
		}
		return q.command == commandBlockStatus
	}}
	c := s.dial(t, Options{Contexts: []string{Allocation}})
	for stop := range 10 {
		n := 0
		for range c.Status(t.Context(), Allocation, 0, 9) {
			if n++; n > stop {
				break
			}
		}
		if want := min(stop+1, 9); n != want {
			t.Errorf("%d extents, want %d", n, want)
		}
	}
}

func TestAStatusOfWhatIsNotThereIsRefused(t *testing.T) {
	s := &script{size: 1000, contexts: []string{Allocation}}
	c := s.dial(t, Options{Contexts: []string{Allocation}})
	_, err := extent.Collect(c.Dirty(t.Context(), DirtyBitmap("b"), 0, 1000))
	wantError(t, err, ErrNoContext)
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, 1001}, {1000, 1}, {1 << 62, 1 << 62}} {
		_, err := extent.Collect(c.Zeros(t.Context(), r[0], r[1]))
		wantError(t, err, extent.ErrRange)
	}
	if got := collectStatus(t, c, Allocation, 1000, 0); len(got) > 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// TestTheLargestStatusIsTaken is a chunk of as many extents as there may be.
func TestTheLargestStatusIsTaken(t *testing.T) {
	var descriptors []uint32
	for i := range uint32(maxDescriptors) {
		descriptors = append(descriptors, 1, i%2*FlagDirty)
	}
	s := &script{size: maxDescriptors, contexts: []string{testContext}, onRequest: func(s *scriptSession, q query) bool {
		if q.command == commandBlockStatus {
			s.put(q.status(chunkDone, firstID, descriptors...))
		}
		return q.command == commandBlockStatus
	}}
	c := s.dial(t, Options{Contexts: []string{testContext}})
	total, err := extent.Total(c.Dirty(t.Context(), testContext, 0, maxDescriptors))
	if err != nil || total != maxDescriptors/2 {
		t.Errorf("%d dirty, %v", total, err)
	}
}

// TestLengthsThatAreNotMeantTakeNoMemory has servers that promise 4 GiB and send
// nothing.
func TestLengthsThatAreNotMeantTakeNoMemory(t *testing.T) {
	head := func(kind uint16, n uint32) func(q query) []byte {
		return func(q query) []byte { return be(uint32(magicStructured), uint16(0), kind, q.cookie, n, uint64(q.off)) }
	}
	for name, answer := range map[string]func(q query) []byte{
		"data": head(chunkData, 1<<32-1), "status": head(chunkStatus, 4+8*maxDescriptors), "error": head(chunkError, 1<<32-1),
		"hole": func(q query) []byte { return q.hole(0, q.off, 1<<32-1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{size: 1 << 50, contexts: []string{Allocation}, onRequest: func(s *scriptSession, q query) bool {
				s.put(answer(q))
				panic(hangUp{})
			}}
			c := s.dial(t, Options{Contexts: []string{Allocation}})
			p := make([]byte, 4096)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, readErr := c.ReadAt(p, 0)
			_, statusErr := extent.Collect(c.Zeros(t.Context(), 0, 1<<50))
			runtime.ReadMemStats(&after)
			wantError(t, readErr, ErrLost)
			wantError(t, statusErr, ErrLost)
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
				t.Errorf("%d bytes were allocated", used)
			}
		})
	}
}
