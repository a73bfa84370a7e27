package verify

import (
	"encoding/binary"
	"sync"

	"github.com/qbackup/qbackup/internal/repo/format"
)

// nodeKey is a reference to a node and the place it was read for, hashed: a node at two places is wrong at one of them.
type nodeKey [16]byte

func keyOfNode(ref format.NodeRef, level int, first int64) nodeKey {
	b := make([]byte, 0, 80)
	b = append(b, ref.Run[:]...)
	b = binary.BigEndian.AppendUint32(b, ref.Object)
	b = binary.BigEndian.AppendUint32(b, ref.Offset)
	b = binary.BigEndian.AppendUint32(b, ref.Length)
	b = append(b, ref.Hash[:]...)
	b = append(b, byte(level))
	b = binary.BigEndian.AppendUint64(b, uint64(first))
	sum := format.SumHash(b)
	return nodeKey(sum[:])
}

// outcome is what is known of a node and all below it.
type outcome struct {
	// runs has a bit for each run that the subtree refers to: the run's number modulo 64. A point whose own runs do
	// not cover the bits lacks one of these runs.
	runs    uint64
	damaged bool
}

func (o outcome) with(p outcome) outcome { return outcome{o.runs | p.runs, o.damaged || p.damaged} }

// nodeSet remembers the nodes that were looked at, in two generations: when the young one is full, the old one is forgotten.
// Points are walked in the order they were made, so what neighbours share stays.
type nodeSet struct {
	limit      int
	mu         sync.Mutex
	young, old map[nodeKey]outcome
}

func newNodeSet(limit int) *nodeSet { return &nodeSet{limit: limit, young: map[nodeKey]outcome{}} }

func (s *nodeSet) get(k nodeKey) (outcome, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.young[k]; ok {
		return o, true
	}
	o, ok := s.old[k]
	if ok {
		s.add(k, o)
	}
	return o, ok
}

func (s *nodeSet) put(k nodeKey, o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(k, o)
}

func (s *nodeSet) add(k nodeKey, o outcome) {
	if len(s.young) >= s.limit {
		s.young, s.old = map[nodeKey]outcome{}, s.young
	}
	s.young[k] = o
}
