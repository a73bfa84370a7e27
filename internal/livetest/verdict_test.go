package livetest

import (
	"math/rand/v2"
	"testing"
	"time"
)

// history is a guest without a machine: its log, and what its disks were after each operation.
type history struct {
	g  *guest
	by []int // who did each operation, in their order
}

// step is between the beginnings of two operations.
const step = 2 * time.Millisecond

// moment is when the n-th operation began.
func moment(n int) time.Time { return time.Unix(1e9, 0).Add(time.Duration(n) * step) }

func newHistory(t *testing.T, seed uint64, n int) *history {
	h := &history{g: newGuest(t, seed, 2, 64<<10, 96<<10)}
	random := rand.New(rand.NewPCG(seed, 9))
	for i := range n {
		writer := random.IntN(2)
		w := h.g.writers[writer]
		o := &operation{disk: random.IntN(2), seed: random.Uint64(), zero: random.IntN(4) == 0, len: sector << random.IntN(5)}
		o.off = w.first + random.Int64N((w.last-w.first-o.len)/sector+1)*sector
		o.issued, o.done = moment(i), moment(i).Add(step/2)
		w.log = append(w.log, o)
		h.by = append(h.by, writer)
	}
	return h
}

// disks are what they were after each writer's number of operations.
func (h *history) disks(after ...int) [][]byte {
	var disks [][]byte
	for _, size := range h.g.sizes {
		disks = append(disks, make([]byte, size))
	}
	for i, w := range h.g.writers {
		for _, o := range w.log[:after[i]] {
			copy(disks[o.disk][o.off:], o.fill())
		}
	}
	return disks
}

// at counts each writer's operations among the first n of all.
func (h *history) at(n int) []int {
	after := []int{0, 0}
	for _, writer := range h.by[:n] {
		after[writer]++
	}
	return after
}

func TestTheJudgeKnowsOneInstantFromNone(t *testing.T) {
	const operations = 60
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 10))
		n := 20 + random.IntN(20)
		begun, ended := moment(n-2), moment(n+2)
		h := newHistory(t, seed, operations)
		if err := h.g.judge(h.disks(h.at(n)...), begun, ended); err != nil {
			t.Errorf("seed %d: what was there: %v", seed, err)
		}

		// A sector that was never so.
		h = newHistory(t, seed, operations)
		disks := h.disks(h.at(n)...)
		disks[random.IntN(2)][random.IntN(64<<10/2/sector*sector)] ^= 1
		if err := h.g.judge(disks, begun, ended); err == nil {
			t.Errorf("seed %d: a wrong byte is right", seed)
		}

		// The one writer's disks of long before, or long after, the other's.
		for _, far := range []int{n - 18, n + 18} {
			h = newHistory(t, seed, operations)
			mixed := []int{h.at(n)[0], h.at(far)[1]}
			disks = h.disks(mixed...)
			if same(disks, h.disks(h.at(n)...)) {
				continue
			}
			if err := h.g.judge(disks, begun, ended); err == nil {
				t.Errorf("seed %d: two instants, %v and %v, are one", seed, h.at(n), h.at(far))
			}
		}
	}
}

func same(a, b [][]byte) bool {
	for i := range a {
		if string(a[i]) != string(b[i]) {
			return false
		}
	}
	return true
}
