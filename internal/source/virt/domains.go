package virt

import (
	"context"
	"strings"
)

// Domain is one that a libvirt knows.
type Domain struct{ Name, UUID string }

// Domains lists all domains that a libvirt knows, running or off.
func Domains(ctx context.Context, uri string) ([]Domain, error) {
	m := New(Options{URI: uri})
	out, err := m.virsh.do(ctx, []string{"list", "--all", "--uuid", "--name"})
	if err != nil {
		return nil, explain("libvirt at "+m.o.URI, err)
	}
	var all []Domain
	for line := range strings.Lines(out) {
		uuid, name, _ := strings.Cut(strings.Trim(line, "\n"), " ")
		if name = strings.TrimLeft(name, " "); name != "" {
			all = append(all, Domain{name, uuid})
		}
	}
	return all, nil
}
