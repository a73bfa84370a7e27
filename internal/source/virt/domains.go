package virt

import (
	"context"
	"strings"
)

// Domains lists the names of all domains that a libvirt knows, running or off.
func Domains(ctx context.Context, uri string) ([]string, error) {
	m := New(Options{URI: uri})
	out, err := m.virsh.do(ctx, []string{"list", "--all", "--name"})
	if err != nil {
		return nil, explain("libvirt at "+m.o.URI, err)
	}
	var names []string
	for line := range strings.Lines(out) {
		if name := strings.TrimRight(line, "\n"); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}
