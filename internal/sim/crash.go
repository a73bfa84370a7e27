package sim

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
)

// Crash says what of a recording reached the disk. Writes before the last sync
// that was done are there. Of the writes after it, any may be missing, and one
// may be torn.
type Crash struct {
	// Done is how many operations were issued whole.
	Done int
	// Torn is how many bytes of operation Done, a write, are there as well:
	// the first ones, or the last ones when Tail is set.
	Torn int
	Tail bool
	// Lost are the operations before Done that did not reach the disk, in
	// ascending order; all of them follow the last sync.
	Lost []int
}

func (c Crash) String() string {
	end := "first"
	if c.Tail {
		end = "last"
	}
	return fmt.Sprintf("after %d operations and the %s %d bytes of the next, without operations %v", c.Done, end, c.Torn, c.Lost)
}

// After returns what the disk holds after a crash.
func (r *RecordingFile) After(c Crash) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	content := slices.Clone(r.base)
	for i, op := range r.ops[:c.Done] {
		if op.Sync || slices.Contains(c.Lost, i) {
			continue
		}
		content = apply(content, op.Offset, op.Data)
	}
	if c.Torn > 0 {
		op := r.ops[c.Done]
		if c.Tail {
			skip := len(op.Data) - c.Torn
			return apply(content, op.Offset+int64(skip), op.Data[skip:])
		}
		content = apply(content, op.Offset, op.Data[:c.Torn])
	}
	return content
}

// CrashOptions bound how many crashes are tried.
type CrashOptions struct {
	// TornBytes is up to which length a write is torn at every byte. Longer
	// writes are torn at every byte near both ends, and at some places
	// between.
	TornBytes int
	// Subsets is how many sets of lost writes are tried for each operation,
	// beside "none of them lost" and "all of them lost". When there are few
	// enough writes, all sets are tried.
	Subsets int
	// Seed makes the choice repeatable.
	Seed uint64
}

// Crashes yields crashes during a recording: at each operation, with the one in
// flight torn at each byte from either side, and with sets of earlier unsynced
// writes lost.
func (r *RecordingFile) Crashes(o CrashOptions) iter.Seq[Crash] {
	ops := r.Ops()
	random := rand.New(rand.NewPCG(o.Seed, o.Seed))
	return func(yield func(Crash) bool) {
		for done := 0; done <= len(ops); done++ {
			unsynced := unsyncedWrites(ops[:done])
			for _, lost := range lostSets(unsynced, o.Subsets, random) {
				if !yield(Crash{Done: done, Lost: lost}) {
					return
				}
				if done == len(ops) || ops[done].Sync {
					continue
				}
				for _, n := range tears(len(ops[done].Data), o.TornBytes, random) {
					if !yield(Crash{Done: done, Torn: n, Lost: lost}) || !yield(Crash{Done: done, Torn: n, Tail: true, Lost: lost}) {
						return
					}
				}
			}
		}
	}
}

// unsyncedWrites returns the numbers of the writes after the last sync.
func unsyncedWrites(ops []Op) []int {
	var list []int
	for i, op := range ops {
		if op.Sync {
			list = nil
			continue
		}
		list = append(list, i)
	}
	return list
}

// lostSets returns sets of lost writes, the empty one first.
func lostSets(unsynced []int, subsets int, random *rand.Rand) [][]int {
	sets := [][]int{nil}
	if len(unsynced) == 0 {
		return sets
	}
	if len(unsynced) < 20 && 1<<len(unsynced) <= subsets+2 {
		for mask := 1; mask < 1<<len(unsynced); mask++ {
			sets = append(sets, pick(unsynced, func(i int) bool { return mask>>i&1 == 1 }))
		}
		return sets
	}
	sets = append(sets, unsynced)
	for range subsets {
		sets = append(sets, pick(unsynced, func(int) bool { return random.IntN(2) == 1 }))
	}
	return sets
}

func pick(list []int, want func(i int) bool) []int {
	var picked []int
	for i, v := range list {
		if want(i) {
			picked = append(picked, v)
		}
	}
	return picked
}

// tears returns where a write of n bytes is torn: between 1 and n-1.
func tears(n, every int, random *rand.Rand) []int {
	const near, between = 40, 24
	var list []int
	for i := 1; i < n; i++ {
		if n <= every || i <= near || i >= n-near {
			list = append(list, i)
		}
	}
	if n > every {
		for range between {
			list = append(list, 1+random.IntN(n-1))
		}
		slices.Sort(list)
		list = slices.Compact(list)
	}
	return list
}
