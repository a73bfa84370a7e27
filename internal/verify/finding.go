package verify

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qbackup/qbackup/internal/extent"
	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/repo"
	"github.com/qbackup/qbackup/internal/repo/format"
	"github.com/qbackup/qbackup/internal/store"
)

// finding is one damaged place.
type finding struct {
	key            string
	offset, length int64 // offset -1: the object as a whole
	problem        string
}

func wholeObject(key, problem string, args ...any) finding {
	return finding{key, -1, 0, fmt.Sprintf(problem, args...)}
}

// judge tells whether an error says that an object is damaged, and in what words; every other error says nothing about the
// repository's content. An input/output error is one of a single file: a disk that fails in one place.
func judge(err error) (problem string, damaged bool) {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return "it is missing", true
	case errors.Is(err, store.ErrRange):
		return "it is shorter than it must be", true
	}
	for _, class := range []error{format.ErrCorrupt, format.ErrMisplaced, format.ErrInvalid, format.ErrUnsupported, store.ErrCorrupt, repo.ErrDamaged, syscall.EIO} {
		if errors.Is(err, class) {
			return err.Error(), true
		}
	}
	return "", false
}

// place is what makes two findings the same one.
type place struct {
	key    string
	offset int64
}

// pointID names a point.
type pointID struct {
	machine ident.MachineName
	run     ident.RunID
}

// table collects findings and what they cost. It is safe for parallel use.
type table struct {
	mu      sync.Mutex
	entries map[place]*entry
	ranges  int
	omitted int64
}

type entry struct {
	finding
	points map[pointID]*lost
}

type lost struct {
	time       time.Time
	unreadable bool
	disks      map[string][]extent.Extent
}

func newTable() *table { return &table{entries: map[place]*entry{}} }

// add notes a finding, once for each place.
func (t *table) add(f finding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entry(f)
}

func (t *table) entry(f finding) *entry {
	at := place{f.key, f.offset}
	e := t.entries[at]
	if e == nil {
		e = &entry{finding: f, points: map[pointID]*lost{}}
		t.entries[at] = e
	}
	return e
}

func (t *table) lost(f finding, id pointID, at time.Time) *lost {
	e := t.entry(f)
	l := e.points[id]
	if l == nil {
		l = &lost{time: at, disks: map[string][]extent.Extent{}}
		e.points[id] = l
	}
	return l
}

// addPoint notes that a finding makes a point unreadable.
func (t *table) addPoint(f finding, id pointID, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost(f, id, at).unreadable = true
}

// addRange notes that a finding costs a range of a disk of a point.
func (t *table) addRange(f finding, id pointID, at time.Time, disk string, e extent.Extent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lost(f, id, at)
	ranges := l.disks[disk]
	if n := len(ranges); n > 0 && ranges[n-1].End() == e.Off {
		ranges[n-1].Len += e.Len
		return
	}
	if t.ranges >= maxRanges {
		t.omitted++
		return
	}
	t.ranges++
	l.disks[disk] = append(ranges, e)
}

// has reports whether there is a finding in an object.
func (t *table) has(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for at := range t.entries {
		if at.key == key {
			return true
		}
	}
	return false
}

// findings gives all findings by key and offset.
func (t *table) findings() []finding {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []finding
	for _, e := range t.entries {
		all = append(all, e.finding)
	}
	slices.SortFunc(all, func(a, b finding) int { return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(a.offset, b.offset)) })
	return all
}

// damage gives the findings as the report has them.
func (t *table) damage() []Damage {
	list := []Damage{}
	for _, f := range t.findings() {
		e := t.entries[place{f.key, f.offset}]
		d := Damage{Key: f.key, Offset: f.offset, Length: f.length, Problem: f.problem, Points: []AffectedPoint{}}
		for id, l := range e.points {
			d.Points = append(d.Points, AffectedPoint{Machine: id.machine, Point: id.run, Time: l.time, Unreadable: l.unreadable, Disks: l.ranges()})
		}
		slices.SortFunc(d.Points, func(a, b AffectedPoint) int {
			return cmp.Or(cmp.Compare(a.Machine, b.Machine), a.Time.Compare(b.Time), a.Point.Compare(b.Point))
		})
		list = append(list, d)
	}
	return list
}

// ranges joins neighbours: they were found in any order.
func (l *lost) ranges() []AffectedRange {
	all := []AffectedRange{}
	for _, disk := range slices.Sorted(maps.Keys(l.disks)) {
		list := l.disks[disk]
		slices.SortFunc(list, func(a, b extent.Extent) int { return cmp.Compare(a.Off, b.Off) })
		for i, e := range list {
			if last := len(all) - 1; i > 0 && all[last].Off+all[last].Len >= e.Off {
				all[last].Len = max(all[last].Len, e.End()-all[last].Off)
				continue
			}
			all = append(all, AffectedRange{disk, e.Off, e.Len})
		}
	}
	return all
}
