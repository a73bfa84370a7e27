package sim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// PowerCut is a power failure that concerns all devices of a log at once.
type PowerCut struct {
	// Done is how many effects were issued whole.
	Done int
	// Torn is how many bytes of effect Done, a Write, got there as well: the first
	// ones, or the last ones when Tail is set.
	Torn int
	Tail bool
	// Kept is, by device, how likely it is that something not yet synced was kept:
	// 1 keeps all, 0 nothing. A device that is not in it keeps all.
	Kept map[string]float64
	// Seed makes the chances repeatable.
	Seed uint64
}

// String names the cut, as a test would.
func (c PowerCut) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cut %d", c.Done)
	if c.Torn > 0 {
		fmt.Fprintf(&b, ", %s %d bytes of the next", map[bool]string{false: "first", true: "last"}[c.Tail], c.Torn)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Kept)) {
		switch chance := c.Kept[name]; {
		case chance <= 0:
			fmt.Fprintf(&b, ", %s without what was not synced", name)
		case chance < 1:
			fmt.Fprintf(&b, ", %s with some of what was not synced (%d)", name, c.Seed)
		}
	}
	return b.String()
}

// State is what devices hold.
type State struct {
	Images  map[string][]byte
	Folders map[string]Tree
}

// Equal reports whether all devices hold the same.
func (s State) Equal(other State) bool {
	return maps.EqualFunc(s.Images, other.Images, bytes.Equal) && maps.EqualFunc(s.Folders, other.Folders, Tree.Equal)
}

// Sum is the same for equal states, and for no others.
func (s State) Sum() [sha256.Size]byte {
	h := sha256.New()
	field := func(b []byte) {
		fmt.Fprintf(h, "%d ", len(b))
		h.Write(b)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Images)) {
		field([]byte(name))
		field(s.Images[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.Folders)) {
		field([]byte(name))
		tree := s.Folders[name]
		for _, path := range slices.Sorted(maps.Keys(tree)) {
			fmt.Fprintf(h, "%t ", tree[path].Folder)
			field([]byte(path))
			field(tree[path].Bytes)
		}
		field(nil)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// After returns what the devices hold after a power failure.
func (l *Log) After(c PowerCut) State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := State{map[string][]byte{}, map[string]Tree{}}
	for i, d := range l.devices {
		var effects []Effect
		for _, e := range l.effects[:c.Done] {
			if e.Device == d.name {
				effects = append(effects, e)
			}
		}
		var torn *Effect
		if c.Torn > 0 && l.effects[c.Done].Device == d.name {
			torn = &l.effects[c.Done]
		}
		chance, lossy := c.Kept[d.name]
		if !lossy {
			chance = 1
		}
		random := rand.New(rand.NewPCG(c.Seed, uint64(i)))
		switch d.kind {
		case imageDevice:
			content := imageAfter(d.image, effects, chance, random)
			if torn != nil {
				off, data := c.part(*torn)
				content = apply(content, off, data)
			}
			s.Images[d.name] = content
		case folderDevice:
			if torn != nil {
				// A file that is appended to has no later bytes without the earlier.
				part := *torn
				part.Data = part.Data[:c.Torn]
				effects = append(effects, part)
			}
			s.Folders[d.name] = replayFolder(d.tree, effects).survive(chance, random)
		case watchedDevice:
			s.Folders[d.name] = d.tree
			if len(effects) > 0 {
				s.Folders[d.name] = effects[len(effects)-1].Tree
			}
		}
	}
	return s
}

// part is what a torn write to an image leaves.
func (c PowerCut) part(e Effect) (off int64, data []byte) {
	if c.Tail {
		skip := len(e.Data) - c.Torn
		return e.Offset + int64(skip), e.Data[skip:]
	}
	return e.Offset, e.Data[:c.Torn]
}

// CutOptions bound how many power failures are tried.
type CutOptions struct {
	// Subsets is how many random sets of lost effects are tried at each effect,
	// beside "nothing is lost", "all that is not synced is lost", and that of one
	// device alone.
	Subsets int
	// Tears is at how many places a write to an image is torn, from either side;
	// one that has fewer bytes is torn at each. A write to a new file is torn at one
	// place, since nobody sees the file before it has its name.
	Tears int
	// Seed makes the choice repeatable.
	Seed uint64
}

// PowerCuts yields power failures during the log: at each effect, with and without
// what was not synced, and with each write torn. Many of them leave the same State.
func (l *Log) PowerCuts(o CutOptions) iter.Seq[PowerCut] {
	effects, devices := l.Effects(), l.Devices()
	random := rand.New(rand.NewPCG(o.Seed, 1))
	return func(yield func(PowerCut) bool) {
		for done := 0; done <= len(effects); done++ {
			for _, kept := range losses(devices, o.Subsets) {
				c := PowerCut{Done: done, Kept: kept, Seed: random.Uint64() % 1e6}
				if !yield(c) {
					return
				}
			}
			if done == len(effects) || effects[done].Verb != Write {
				continue
			}
			for _, c := range tornCuts(done, effects[done], o.Tears, random) {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// losses returns which devices lose what, the one that loses nothing first.
func losses(devices []string, subsets int) []map[string]float64 {
	every := func(chance float64) map[string]float64 {
		kept := map[string]float64{}
		for _, d := range devices {
			kept[d] = chance
		}
		return kept
	}
	list := []map[string]float64{nil, every(0)}
	if len(devices) > 1 {
		for _, d := range devices {
			list = append(list, map[string]float64{d: 0})
		}
	}
	for range subsets {
		list = append(list, every(0.5))
	}
	return list
}

// tornCuts tears one write. What was not synced before it is there in half of the
// cuts, and there by chance in the others.
func tornCuts(done int, e Effect, tears int, random *rand.Rand) []PowerCut {
	var cuts []PowerCut
	add := func(torn int, tail bool) {
		c := PowerCut{Done: done, Torn: torn, Tail: tail, Seed: random.Uint64() % 1e6}
		if random.IntN(2) == 0 {
			c.Kept = map[string]float64{e.Device: 0.5}
		}
		cuts = append(cuts, c)
	}
	n := len(e.Data)
	switch {
	case n < 2:
	case e.Path != "":
		add(1+random.IntN(n-1), false)
	default:
		for i := range min(tears, n-1) {
			at := 1 + i
			if tears < n-1 {
				at = 1 + random.IntN(n-1)
			}
			add(at, false)
			add(at, true)
		}
	}
	return cuts
}
