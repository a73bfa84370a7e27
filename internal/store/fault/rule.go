package fault

import (
	"strings"

	"github.com/qbackup/qbackup/internal/store"
)

// Verb selects calls of a Store.
type Verb uint8

// The verbs of store.Store. Any stands for each of them.
const (
	Any Verb = iota
	Put
	Get
	Stat
	List
	Delete
	verbs
)

// Kind is what goes wrong.
type Kind uint8

const (
	// Before fails the call with Rule.Err; it has no effect.
	Before Kind = iota
	// After lets the call have its effect and then returns Rule.Err: the answer
	// was lost.
	After
	// Truncate lets a Get or List yield its first half and then Rule.Err.
	Truncate
	// Garble flips one bit in the middle of what a Get yields.
	Garble
	// Resize makes Stat and List tell one byte more than there is.
	Resize
	// Late fails a Put with Rule.Err; its effect comes with the next call of any
	// verb that finds at least Rule.Delay later calls counted, or with Settle.
	Late
	// Overwrite makes a Put replace what is there and return nil: a server that
	// ignores the condition.
	Overwrite
	// Omit makes List leave out the objects under Rule.Prefix.
	Omit
)

// Forever as a Count makes a rule match from its first call on without end.
const Forever = -1

// Rule says which calls meet a fault. The zero values of the selectors select the
// first call that matches.
type Rule struct {
	Verb   Verb    // Any: all verbs
	Prefix string  // of the key; a List matches by its own prefix (Omit: by object)
	From   int     // the first matching call that is hit, from 1; 0 is 1
	Count  int     // how many from there; 0 is 1
	Chance float64 // 0 is always; else the share of them that is hit, by seed

	Kind  Kind
	Err   error // class of the error; nil is store.ErrTransient
	Delay int   // Late only

	seen int // matching calls so far
}

// Down makes every call from the n-th on fail as unreachable.
func Down(n int) Rule {
	return Rule{From: n, Count: Forever, Err: store.ErrUnreachable}
}

// Full makes every Put from the n-th on fail for want of space.
func Full(n int) Rule {
	return Rule{Verb: Put, From: n, Count: Forever, Err: store.ErrFull}
}

// DenyDelete refuses every Delete, as credentials without that right do.
func DenyDelete() Rule {
	return Rule{Verb: Delete, Count: Forever, Err: store.ErrDenied}
}

// selects counts the call and reports whether the rule hits it.
func (r *Rule) selects(v Verb, key string, roll func() float64) bool {
	if r.Verb != Any && r.Verb != v {
		return false
	}
	if r.Kind != Omit && !strings.HasPrefix(key, r.Prefix) {
		return false
	}
	if !r.Kind.concerns(v) {
		return false
	}
	r.seen++
	first := max(r.From, 1)
	if r.seen < first || r.Count != Forever && r.seen >= first+max(r.Count, 1) {
		return false
	}
	return r.Chance == 0 || roll() < r.Chance
}

func (k Kind) concerns(v Verb) bool {
	switch k {
	case Truncate:
		return v == Get || v == List
	case Garble:
		return v == Get
	case Resize:
		return v == Stat || v == List
	case Late, Overwrite:
		return v == Put
	case Omit:
		return v == List
	}
	return true
}
