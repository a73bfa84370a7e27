package configs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrInvalid is the class of every fault of a configuration file.
var ErrInvalid = errors.New("the configuration is wrong")

var errDays = errors.New("not days of the week; write them as mon-fri or sat,sun")

// Fault is one thing that is wrong, and where.
type Fault struct {
	File         string
	Line, Column int    // from 1; 0: the file as a whole
	Key          string // "machines[2].schedule"; empty: none
	Text         string
}

// Error says where and what.
func (f Fault) Error() string {
	place := f.File
	if f.Line > 0 {
		place = fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column)
	}
	if f.Key != "" {
		place += ": " + f.Key
	}
	return place + ": " + f.Text
}

// Is makes errors.Is(err, ErrInvalid) true.
func (f Fault) Is(target error) bool { return target == ErrInvalid }

// Faults are all that is wrong with a file, in the order of its lines.
type Faults []Fault

// Error lists them, one a line.
func (all Faults) Error() string {
	lines := make([]string, len(all))
	for i, f := range all {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Is makes errors.Is(err, ErrInvalid) true.
func (all Faults) Is(target error) bool { return target == ErrInvalid }

// sorted gives the faults in the order of lines, each once; nil when there are none.
func (all Faults) sorted() error {
	if len(all) == 0 {
		return nil
	}
	slices.SortStableFunc(all, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.Compact(all)
}

// near gives the word of words that was probably meant; empty: none is near.
func near(word string, words []string) string {
	best, found := len(word)/3+2, ""
	for _, w := range words {
		if d := distance(word, w); d < best {
			best, found = d, w
		}
	}
	return found
}

// distance counts the letters to insert, delete or replace between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
