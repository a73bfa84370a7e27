package fleet

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/qbackup/qbackup/internal/ident"
	"github.com/qbackup/qbackup/internal/retention"
	"github.com/qbackup/qbackup/internal/source/virt"
	"github.com/qbackup/qbackup/internal/target"
)

// Machine is one machine that is to be backed up.
type Machine struct {
	Name ident.MachineName
	Spec target.Spec
	Policy
}

// Policy is what holds for a machine besides what it is.
type Policy struct {
	// Schedule is an expression of package schedule; empty: due at each run.
	Schedule string
	Jitter   time.Duration
	// Objective is how old the newest point may be; 0: nobody said.
	Objective time.Duration
	Hooks     Hooks
	// Keep says which points stay after a backup; empty: all.
	Keep retention.Policy
}

// Entry is what a configuration says: one machine, or a rule that finds several.
type Entry struct {
	Spec target.Spec
	// Each is a pattern of image files, [raw:]PATTERN; each is a machine named by its stem.
	Each string
	// Domains is a pattern of names of libvirt domains, but not those that match Except.
	Domains string
	Except  []string
	Policy
}

// Problem is an entry of which nothing can be backed up, or not all.
type Problem struct {
	Entry string // in the operator's words
	Err   error
}

// Error names the entry.
func (p *Problem) Error() string { return p.Entry + ": " + p.Err.Error() }

// Unwrap reaches the reason.
func (p *Problem) Unwrap() error { return p.Err }

// ErrTwice: two entries are the same machine.
var ErrTwice = errors.New("named twice")

// Expand finds the machines of entries, in their order. An entry by name comes before a
// pattern that finds the same machine, wherever it stands. What cannot be had is a
// problem, and keeps no other machine from being found.
func Expand(ctx context.Context, entries []Entry) ([]Machine, []*Problem) {
	x := expansion{named: map[ident.MachineName]bool{}, domains: map[string]bool{}, images: map[string]bool{}}
	for _, e := range entries {
		if e.Each == "" && e.Domains == "" {
			x.one(e)
		}
	}
	for _, e := range entries {
		switch {
		case e.Each != "":
			x.each(e)
		case e.Domains != "":
			x.matching(ctx, e)
		}
	}
	return x.machines, x.problems
}

type expansion struct {
	machines []Machine
	problems []*Problem
	named    map[ident.MachineName]bool
	domains  map[string]bool // that stand by name
	images   map[string]bool // of machines that were found
}

func (x *expansion) problem(entry string, err error) {
	x.problems = append(x.problems, &Problem{entry, err})
}

// one is an entry for a single machine.
func (x *expansion) one(e Entry) {
	name, err := e.Spec.MachineName()
	if err != nil {
		x.problem(describe(e.Spec), err)
		return
	}
	if x.named[name] {
		x.problem("machine "+string(name), ErrTwice)
		return
	}
	x.named[name] = true
	if e.Spec.Domain != "" {
		x.domains[e.Spec.Domain] = true
	}
	x.add(name, e.Spec, e.Policy)
}

func (x *expansion) add(name ident.MachineName, s target.Spec, p Policy) {
	x.machines = append(x.machines, Machine{name, s, p})
	paths, _ := s.ImagePaths() // the name was taken from them
	for _, path := range paths {
		x.images[path] = true
	}
}

func describe(s target.Spec) string {
	switch {
	case s.Name != "":
		return "machine " + s.Name
	case s.Domain != "":
		return "domain " + s.Domain
	default:
		return "images " + strings.Join(s.Images, ", ")
	}
}

// each is an entry for one machine per file.
func (x *expansion) each(e Entry) {
	pattern, raw := strings.CutPrefix(e.Each, "raw:")
	files, err := filepath.Glob(pattern)
	if err == nil && len(files) == 0 {
		err = errors.New("no file matches")
	}
	if err != nil {
		x.problem("each: "+e.Each, err)
		return
	}
	for _, file := range files {
		s := e.Spec
		if s.Images = []string{file}; raw {
			s.Images[0] = "raw:" + file
		}
		x.found(s, e.Policy, "each: "+file)
	}
}

// matching is an entry for the domains that match a pattern.
func (x *expansion) matching(ctx context.Context, e Entry) {
	all, err := virt.Domains(ctx, e.Spec.URI)
	if err != nil {
		x.problem("libvirt: "+e.Domains, err)
		return
	}
	found := false
	for _, known := range all {
		domain := known.Name
		if match, err := path.Match(e.Domains, domain); err != nil {
			x.problem("libvirt: "+e.Domains, err)
			return
		} else if !match {
			continue
		}
		found = true
		if x.domains[domain] || x.domains[known.UUID] || slices.ContainsFunc(e.Except, func(p string) bool { ok, _ := path.Match(p, domain); return ok }) {
			continue
		}
		s := e.Spec
		s.Domain = domain
		x.found(s, e.Policy, "libvirt: "+domain)
	}
	if !found {
		x.problem("libvirt: "+e.Domains, fmt.Errorf("no domain of %s matches", e.Spec.URI))
	}
}

// found is a machine that a pattern matches. One that is there already, by its name or
// by an image, has been described better.
func (x *expansion) found(s target.Spec, p Policy, entry string) {
	name, err := s.MachineName()
	if err != nil {
		x.problem(entry, err)
		return
	}
	paths, _ := s.ImagePaths() // the name was taken from them
	if x.named[name] || slices.ContainsFunc(paths, func(path string) bool { return x.images[path] }) {
		return
	}
	x.named[name] = true
	x.add(name, s, p)
}

// Unassigned are the domains of the libvirts that entries name of which none of the
// entries speaks, neither by name or pattern nor as an exception.
func Unassigned(ctx context.Context, entries []Entry) []string {
	byURI := map[string][]Entry{}
	for _, e := range entries {
		if e.Domains != "" || e.Spec.Domain != "" {
			byURI[e.Spec.URI] = append(byURI[e.Spec.URI], e)
		}
	}
	var list []string
	for uri, entries := range byURI {
		domains, err := virt.Domains(ctx, uri)
		if err != nil {
			continue // Expand says so
		}
		for _, domain := range domains {
			if !slices.ContainsFunc(entries, func(e Entry) bool { return e.speaksOf(domain) }) {
				list = append(list, domain.Name)
			}
		}
	}
	slices.Sort(list)
	return list
}

func (e Entry) speaksOf(domain virt.Domain) bool {
	if e.Spec.Domain != "" && (e.Spec.Domain == domain.Name || strings.EqualFold(e.Spec.Domain, domain.UUID)) {
		return true
	}
	return slices.ContainsFunc(append([]string{e.Domains}, e.Except...), func(pattern string) bool {
		ok, err := path.Match(pattern, domain.Name)
		return ok && err == nil
	})
}
